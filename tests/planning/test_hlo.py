"""Reading compiled HLO: programs with known collectives on 8 virtual devices, and snippets in the
form XLA:TPU writes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from grm_jax.parallel.mesh import make_mesh
from grm_jax.planning.collectives import collectives
from grm_jax.planning.hlo import Shape, arrays, parse, times_run, trips
from grm_jax.planning.traffic import hbm_bytes

MESH = {"replica": 1, "fsdp": 4, "tensor": 2}

# Layouts with tiles and memory spaces, a kernel's configuration over several lines, a condition
# whose constant is the trip count.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=8

%region_add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.3 (p: f32[64,128]) -> f32[16,128] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[64,128]{1,0:T(8,128)} all-reduce(%p), channel_id=4, replica_groups={{0,2,4,6},{1,3,5,7}}, use_global_device_ids=true, to_apply=%region_add
  ROOT %dynamic-slice.2 = f32[16,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.9, %c, %c), dynamic_slice_sizes={16,128}
}

%condition.1 (c: (u32[], bf16[8,128])) -> pred[] {
  %c = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = u32[]{:T(128)} get-tuple-element(%c), index=0
  %trips = u32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%counter, %trips), direction=LT
}

%body.1 (c.1: (u32[], bf16[8,128])) -> (u32[], bf16[8,128]) {
  %c.1 = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%c.1), index=1
  %start = (bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=2, source_target_pairs={{0,2},{2,4},{4,6},{6,0},{1,3},{3,5},{5,7},{7,1}}, metadata={op_name="jit(step)/while" source_file="a(b.py"}
  %done = bf16[8,128]{1,0:T(8,128)(2,1)} collective-permute-done(%start)
  %kernel = bf16[8,128]{1,0:T(8,128)(2,1)} custom-call(%done), custom_call_target="tpu_custom_call", backend_config={"custom_call_config": {"body": "x",
"scheduling": {"a": {"b": 1
}}
  %i = u32[]{:T(128)} get-tuple-element(%c.1), index=0
  ROOT %next = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%i, %kernel)
}

ENTRY %main.1 (w: bf16[16,128], g: f32[64,128]) -> bf16[64,128] {
  %w = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %g = f32[64,128]{1,0:T(8,128)} parameter(1)
  %gather.1 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%w), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, use_global_device_ids=true
  %scatter = f32[16,128]{1,0:T(8,128)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.3
  %zero = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%i0, %x0)
  %loop = (u32[]{:T(128)}, /*index=1*/bf16[8,128]{1,0:T(8,128)(2,1)}) while(%zero), condition=%condition.1, body=%body.1
  ROOT %sum = f32[]{:T(128)} all-reduce(%s), channel_id=3, replica_groups={}, to_apply=%region_add
}
"""


def test_parsing_survives_layouts_comments_and_kernels():
    module, entry = parse(TPU)
    assert entry == "main.1" and set(module) == {
        "region_add",
        "all-reduce-scatter.3",
        "condition.1",
        "body.1",
        "main.1",
    }
    gathered = module["main.1"]["gather.1"]
    assert (
        gathered.shape == Shape("bf16", (64, 128), space=1)
        and gathered.shape.bytes == 64 * 128 * 2
        and gathered.operands == ("w",)
    )
    assert [a.dims for a in arrays(module["main.1"]["loop"].shape)] == [(), (8, 128)]
    assert "i" in module["body.1"] and module["body.1"]["next"].is_root
    assert trips(module, module["main.1"]["loop"]) == 5
    runs, unknown, _ = times_run(module, entry)
    assert runs["body.1"] == 5 and unknown == ()


def test_a_numbered_part_of_a_tuple_may_be_a_tuple():
    nested = "(u32[], /*index=1*/(f32[2], s8[]), /*index=2*/())"
    module, entry = parse(f"ENTRY %main.1 () -> {nested} {{\n  ROOT %t = {nested} tuple()\n}}\n")
    shape = module[entry]["t"].shape
    assert shape == (Shape("u32", ()), (Shape("f32", (2,)), Shape("s8", ())), ())
    assert [one.dtype for one in arrays(shape)] == ["u32", "f32", "s8"]


def test_collectives_of_the_snippet():
    found, unknown = collectives(TPU, MESH)
    by_kind = {one.kind: one for one in found}
    assert unknown == ()
    assert (
        by_kind["all-gather"].axes == ("fsdp",)
        and by_kind["all-gather"].bytes == 64 * 128 * 2 * 3 / 4
    )
    assert (
        by_kind["reduce-scatter"].axes == ("fsdp",)
        and by_kind["reduce-scatter"].bytes == 64 * 128 * 4 * 3 / 4
    )
    assert by_kind["collective-permute"] == ("collective-permute", ("fsdp",), 5, 5 * 8 * 128 * 2)
    assert (
        by_kind["all-reduce"].axes == ("fsdp", "tensor")
        and by_kind["all-reduce"].bytes == 2 * 4 * 7 / 8
    )


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("mesh['axis_0'=1,'axis_1'=4,'axis_2'=2] {'axis_1'}", ("fsdp",)),
        ("mesh['axis_0'=1,'axis_1'=4,'axis_2'=2] {'axis_2'}", ("tensor",)),
        ("mesh['a'=8] {'a'}", ("fsdp", "tensor")),
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("[4,2]<=[8]", ("tensor",)),
        ("[1,8]<=[8]", ("fsdp", "tensor")),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", ("tensor",)),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", ("fsdp",)),
    ],
)
def test_every_form_of_groups(groups, axes):
    text = TPU.replace("replica_groups=[2,4]<=[4,2]T(1,0)", f"replica_groups={groups}")
    found, unknown = collectives(text, MESH)
    gather = next(one for one in found if one.kind == "all-gather")
    n = {("fsdp",): 4, ("tensor",): 2}.get(axes, 8)
    assert gather.axes == axes and gather.bytes == 64 * 128 * 2 * (n - 1) / n and unknown == ()


def test_groups_in_an_unknown_form_are_named():
    found, unknown = collectives(TPU.replace("[2,4]<=[4,2]T(1,0)", "mesh['a'=8] {'a':(1)2}"), MESH)
    assert len(unknown) == 1 and "gather.1" in unknown[0]


def test_a_loop_that_counts_in_twos_runs_half_as_often():
    counted = TPU.replace(
        "  ROOT %next = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%i, %kernel)",
        """  %one = u32[]{:T(128)} constant(1)
  %half = u32[]{:T(128)} add(%i, %one)
  %whole = u32[]{:T(128)} add(%half, %one)
  ROOT %next = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%whole, %kernel)""",
    )
    module, _ = parse(counted)
    assert trips(module, module["main.1"]["loop"]) == 3  # 0, 2, 4 are less than 5
    module, _ = parse(counted.replace("tuple(%whole", "tuple(%half"))
    assert trips(module, module["main.1"]["loop"]) == 5


def test_a_loop_of_unknown_length_is_named():
    found, unknown = collectives(TPU.replace("constant(5)", "parameter(1)"), MESH)
    assert (
        len(unknown) == 1
        and "loop" in unknown[0]
        and next(one for one in found if one.kind == "collective-permute").count == 1
    )


def test_text_that_is_no_hlo_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("%a (b: f32[]) -> f32[] {\n}\n")


def test_gathers_in_a_scan_of_a_compiled_program():
    """Weights [6, 64, 64] over fsdp, gathered layer by layer in a scan; the scalar result is summed
    over the batch's devices.
    """
    mesh = make_mesh(replica=1, fsdp=4, tensor=2)

    def step(w_LDD, x_BD):
        def layer(x, w):
            return jax.lax.with_sharding_constraint(
                jnp.tanh(x @ w), NamedSharding(mesh, P("fsdp"))
            ), None

        return jnp.sum(jax.lax.scan(layer, x_BD, w_LDD)[0])

    w = jax.ShapeDtypeStruct((6, 64, 64), np.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
    x = jax.ShapeDtypeStruct((1024, 64), np.float32, sharding=NamedSharding(mesh, P("fsdp")))
    text = jax.jit(step).lower(w, x).compile().as_text()
    found, unknown = collectives(text, dict(mesh.shape))
    gathers = [one for one in found if one.kind == "all-gather"]
    assert unknown == () and [one.axes for one in gathers] == [("fsdp",)]
    assert gathers[0].count == 6 and gathers[0].bytes == 6 * 64 * 64 * 4 * 3 / 4
    sums = [one for one in found if one.kind == "all-reduce"]
    assert [(one.axes, one.bytes) for one in sums] == [(("fsdp",), 2 * 4 * 3 / 4)]
    # each layer reads its weights and activations, and writes activations
    least = 6 * (64 * 64 * 4 + 2 * 256 * 64 * 4)
    assert least <= hbm_bytes(text) <= 6 * least


# An asynchronous all-gather as XLA:TPU writes it: begun in one fusion, carried on beside a product
# in a loop, waited for in a third.
CHAINED = """HloModule m

%begin (p: bf16[64,8]) -> (bf16[64,8], bf16[64,32], u32[]) {
  %p = bf16[64,8]{1,0} parameter(0)
  %gather.1 = bf16[64,32]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={1}, frontend_attributes={chain_id="7"}
  ROOT %started = (bf16[64,8]{1,0}, bf16[64,32]{1,0}, u32[]{:S(2)}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%beside (x: f32[16,16], q: bf16[64,8], r: bf16[64,32]) -> (f32[16,16], bf16[64,8], bf16[64,32]) {
  %x = f32[16,16]{1,0} parameter(0)
  %q = bf16[64,8]{1,0} parameter(1)
  %r = bf16[64,32]{1,0} parameter(2)
  %gather.2 = bf16[64,32]{1,0} all-gather(%q), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={1}, frontend_attributes={chain_id="7"}
  %twice = f32[16,16]{1,0} add(%x, %x)
  ROOT %both = (f32[16,16]{1,0}, bf16[64,8]{1,0}, bf16[64,32]{1,0}) tuple(%twice, %q, %gather.2)
}

%condition (c: (u32[], f32[16,16], bf16[64,8], bf16[64,32])) -> pred[] {
  %c = (u32[], f32[16,16]{1,0}, bf16[64,8]{1,0}, bf16[64,32]{1,0}) parameter(0)
  %counter = u32[] get-tuple-element(%c), index=0
  %trips = u32[] constant(5)
  ROOT %less = pred[] compare(%counter, %trips), direction=LT
}

%turn (c: (u32[], f32[16,16], bf16[64,8], bf16[64,32])) -> (u32[], f32[16,16], bf16[64,8], bf16[64,32]) {
  %c = (u32[], f32[16,16]{1,0}, bf16[64,8]{1,0}, bf16[64,32]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%c), index=0
  %x = f32[16,16]{1,0} get-tuple-element(%c), index=1
  %q = bf16[64,8]{1,0} get-tuple-element(%c), index=2
  %r = bf16[64,32]{1,0} get-tuple-element(%c), index=3
  %step = (f32[16,16]{1,0}, bf16[64,8]{1,0}, bf16[64,32]{1,0}) fusion(%x, %q, %r), kind=kCustom, calls=%beside
  ROOT %next = (u32[], f32[16,16]{1,0}, bf16[64,8]{1,0}, bf16[64,32]{1,0}) tuple(%i, %step, %q, %r)
}

%wait (q: bf16[64,8], r: bf16[64,32]) -> bf16[64,32] {
  %q = bf16[64,8]{1,0} parameter(0)
  %r = bf16[64,32]{1,0} parameter(1)
  %gather.3 = bf16[64,32]{1,0} all-gather(%q), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={1}, frontend_attributes={chain_id="7"}
  ROOT %ended = bf16[64,32]{1,0} custom-call(%q, %r, %gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (w: bf16[64,8], x: f32[16,16]) -> bf16[64,32] {
  %w = bf16[64,8]{1,0} parameter(0)
  %x = f32[16,16]{1,0} parameter(1)
  %start = (bf16[64,8]{1,0}, bf16[64,32]{1,0}, u32[]{:S(2)}) fusion(%w), kind=kCustom, calls=%begin
  %zero = (u32[], f32[16,16]{1,0}, bf16[64,8]{1,0}, bf16[64,32]{1,0}) tuple(%i0, %x, %start)
  %loop = (u32[], f32[16,16]{1,0}, bf16[64,8]{1,0}, bf16[64,32]{1,0}) while(%zero), condition=%condition, body=%turn
  %q = bf16[64,8]{1,0} get-tuple-element(%loop), index=2
  %r = bf16[64,32]{1,0} get-tuple-element(%loop), index=3
  ROOT %done = bf16[64,32]{1,0} fusion(%q, %r), kind=kCustom, calls=%wait
}
"""


def test_an_asynchronous_collective_counts_once():
    """Not again in the fusions beside which it goes on, nor once a turn of a loop that it goes
    through; nor are its buffers read and written there.
    """
    found, unknown = collectives(CHAINED, MESH)
    gathered = 64 * 32 * 2
    assert unknown == () and found == [("all-gather", ("fsdp",), 1, gathered * 3 / 4)]
    assert hbm_bytes(CHAINED) == gathered / 4 + gathered + 5 * 2 * 16 * 16 * 4


SLICED = """HloModule m

%fused (p0: f32[6,64,64], p1: s32[]) -> f32[64,64] {
  %p0 = f32[6,64,64]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %slice = f32[1,64,64]{2,1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,64,64}
  ROOT %cast = f32[64,64]{1,0} bitcast(%slice)
}

%updated (q0: f32[6,64,64], q1: f32[1,64,64]) -> f32[6,64,64] {
  %q0 = f32[6,64,64]{2,1,0} parameter(0)
  %q1 = f32[1,64,64]{2,1,0} parameter(1)
  ROOT %update = f32[6,64,64]{2,1,0} dynamic-update-slice(%q0, %q1, %z)
}

%scattered (r0: f32[6,64,64], r1: s32[5,3], r2: f32[5]) -> f32[6,64,64] {
  %r0 = f32[6,64,64]{2,1,0} parameter(0)
  %r1 = s32[5,3]{1,0} parameter(1)
  %r2 = f32[5]{0} parameter(2)
  ROOT %scatter.1 = f32[6,64,64]{2,1,0} scatter(%r0, %r1, %r2), update_window_dims={}, to_apply=%region
}

ENTRY %main (a: f32[6,64,64], i: s32[], b: f32[1,64,64], v: f32[64,64]) -> f32[64,64] {
  %a = f32[6,64,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[1,64,64]{2,1,0} parameter(2)
  %v = f32[64,64]{1,0:S(1)} parameter(3)
  %one = f32[64,64]{1,0} fusion(%a, %i), kind=kLoop, calls=%fused
  %two = f32[6,64,64]{2,1,0} fusion(%a, %b), kind=kLoop, calls=%updated
  %four = f32[6,64,64]{2,1,0} fusion(%two, %index, %five), kind=kCustom, calls=%scattered
  %index = s32[5,3]{1,0} parameter(4)
  %five = f32[5]{0} parameter(5)
  ROOT %three = f32[64,64]{1,0} add(%one, %v)
}
"""


def test_hbm_traffic_counts_slices_updates_and_scatters_and_leaves_out_vmem():
    layer = 64 * 64 * 4
    # indices, updates read and written; the array it goes into stays where it is
    scattered = 5 * 3 * 4 + 5 * 4 + 5 * 4
    assert hbm_bytes(SLICED) == (layer + 4 + layer) + (layer + layer) + (layer + layer) + scattered
