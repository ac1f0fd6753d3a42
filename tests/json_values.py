"""Values that a JSON file may hold, as a strategy of hypothesis."""

from hypothesis import strategies as st

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 3, 8, 64, -1, 2**31, 10**40, 10**400])
    | st.floats()
    | st.sampled_from([0.0, 1.0, 1e-6, 50.0, -0.5, 1e39, "default", "linear", "full_attention"])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["rope_type", "type", "rope_theta", "factor"]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=4,
)
