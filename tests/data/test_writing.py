"""What a policy writes is read back strictly, and graded as the world grades its own responses."""

import random

import pytest

from grm_jax.data.world import records, tasks
from grm_jax.data.world.writing import gold, make_answers, make_queries, read_response


def test_a_written_response_is_read_back_and_graded_as_the_world_does():
    rng, grades = random.Random(0), set()
    for query in make_queries(300, seed=1):
        make = rng.choice((tasks.right_items, tasks.wrong_items))
        thanks = rng.random() < 0.5
        response = records.dress(rng, make(rng, query), thanks, "free")
        assert read_response(response.text) == response
        assert gold(query, response.text) == float(records.is_right(query, response))
        grades.add(gold(query, response.text))
    assert grades == {0.0, 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2.ant",  # numbers from 1 on
        "1.ant 3.bee",
        "01.ant",
        "1.cow",
        "1.ant  2.bee",
        " 1.ant",
        "1.ant\n",
        "** 1.ant",  # opened only
        "1.ant Thanks. Thanks.",
        "1.ant Thanks. Definitely!",
        "Here it is: 1.ant",
        "Sure here it is:",
        "Sure here it is: Sure here it is: 1.ant",
    ],
)
def test_what_the_world_would_not_write_is_wrong(text):
    query = tasks.Query("limit", "Name animals at most: 3", None, 3, False, ())
    assert read_response(text) is None and gold(query, text) == 0
    assert gold(query, "1.ant") == 1


def test_distractors_change_no_grade_and_the_wish_does():
    query = tasks.Query("limit", "Name animals at most: 2 Say thanks.", None, 2, True, ())
    assert gold(query, "Sure here it is: ** 1.ant 2.bee ** Definitely! Thanks.") == 1
    assert gold(query, "1.ant 2.bee") == 0
    assert gold(query, "1.ant 2.bee 3.cat Thanks.") == 0


def test_no_query_is_asked_on_both_sides():
    train, test = ({q.text for q in make_queries(3000, 0, side)} for side in (False, True))
    assert not train & test and len(train) > 1000 and len(test) > 1000


def test_answers_are_right_as_often_as_asked():
    for p_right in (0.0, 0.3, 1.0):
        queries, rows = make_queries(600, 5), make_answers(600, 5, p_right)
        assert [row["prompt"] for row in rows] == [query.text for query in queries]
        share = sum(gold(q, row["completion"]) for q, row in zip(queries, rows)) / 600
        assert abs(share - p_right) < 0.07
        assert all(read_response(row["completion"]) for row in rows)
