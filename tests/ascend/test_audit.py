"""The audit of the graphs for Ascend: stand-ins, dumps, and each rule on a case that breaks it."""

import ctypes
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, Popen

import pytest
from commands import execute
from paths import ROOT

from bench.ascend.audit import rules, standins
from bench.ascend.audit.compiling import Graph, compile_all, dumping, nodes_in
from bench.ascend.audit.dump import Node, TensorType, read_dump
from bench.ascend.audit.rules import Rule, kernels
from bench.ascend.audit.support import Support, platforms
from janus.inspect.kernels import Kernel

SUPPORT = Support.load()


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.build(tmp_path_factory.mktemp("cann"))


@pytest.fixture(scope="module")
def dumps(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with what MindSpore's Ascend compiler wrote of the two graphs of `planted.py`."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("faulty", "sound")}
    running = [
        Popen(
            [sys.executable, ROOT / "tests/ascend/planted.py", name],
            env=standins.environment(libraries) | dumping(folder),
            cwd=folder,
            stdout=DEVNULL,
            stderr=DEVNULL,
        )
        for name, folder in folders.items()
    ]
    for process in running:
        process.wait(120)
    return folders


@pytest.fixture(scope="module")
def planted(dumps: Mapping[str, Path]) -> dict[str, list[Node]]:
    return {name: nodes_in(folder) for name, folder in dumps.items()}


def _faults(rule: Rule, nodes: Sequence[Node]) -> list[str]:
    return [fault.partition(" (")[0] for fault in rule(nodes, SUPPORT)]


def test_a_library_of_stand_ins_answers_by_every_name_it_is_asked_for(libraries: Path) -> None:
    library = ctypes.CDLL(str(libraries / "libascendcl.so"))
    library.aclrtGetSocName.restype = ctypes.c_char_p
    assert library.aclrtGetSocName() == b"Ascend910B1"
    assert library.aclnnFlashAttentionVarLenScoreGetWorkspaceSize() == 0
    assert (libraries / "libopapi.so").resolve() == (libraries / "libhccl.so").resolve()
    assert standins.absent_libraries(standins.library_path(str(libraries))) == set()
    assert "libascendcl.so" in standins.absent_libraries(standins.library_path(""))


def test_a_dump_is_read_node_by_node(planted: Mapping[str, list[Node]]) -> None:
    (norm,) = (node for node in planted["sound"] if node.primitive == "RmsNorm")
    rows, scale = TensorType("BFloat16", (32, 32)), TensorType("BFloat16", (32,))
    assert norm.inputs == ((rows,), (scale,), ())
    assert norm.outputs == (rows, TensorType("Float32", (32, 1)))
    assert norm.arguments.endswith("F32(1e-06)")
    assert norm.place().startswith("tests/ascend/planted.py:")
    (attention,) = (node for node in planted["sound"] if node.primitive == "FlashAttentionScore")
    assert [tensor.shape for tensor in attention.tensors] == [(32, 2, 16)] * 3 + [(2048, 2048)]
    assert "Reshape" not in {node.primitive for node in kernels(planted["sound"])}


def test_what_breaks_off_counts_as_no_dump(dumps: Mapping[str, Path], tmp_path: Path) -> None:
    (whole,) = dumps["sound"].glob("hwopt_*.ir")
    cut = tmp_path / whole.name
    cut.write_bytes(whole.read_bytes()[:-200])
    assert read_dump(whole)
    assert read_dump(cut) == nodes_in(tmp_path) == nodes_in(tmp_path / "nothing") == []


def test_the_rules_are_kept_by_a_sound_graph(planted: Mapping[str, list[Node]]) -> None:
    assert [fault for rule in rules.RULES for fault in rule(planted["sound"], SUPPORT)] == []
    assert len(kernels(planted["sound"])) > 10


BROKEN = {
    rules.fallbacks: ["BesselJ0 has no Ascend kernel"],
    rules.undocumented: [
        f"{name} is neither documented for Ascend nor allowed by support.yaml"
        for name in ("BesselJ0", "SparseSoftmaxCrossEntropyWithLogits")
    ],
    rules.lone_gradients: [
        "SparseSoftmaxCrossEntropyWithLogits is left with is_grad: on Ascend its first output is the loss"
    ],
    rules.narrow_sums: ["UnsortedSegmentSum adds up bfloat16, for which no kernel is known; gather float32"],
    rules.long_integers: ["Add reads int64; make it int32"],
    rules.dtypes: [
        "FlashAttentionScore reads Float32, Float32, Float32, which its table of A2 does not have"
    ],
    rules.packed_attention: [
        "FlashAttentionScore has heads 24 wide; it takes multiples of 16 up to 512",
        "FlashAttentionScore has next_tokens 1; TND takes 0",
    ],
    rules.constants: ["holds a constant Float32"],
}
"""What each rule says of the faulty graph."""


def test_every_rule_of_a_graph_has_a_planted_case() -> None:
    assert set(BROKEN) == set(rules.RULES)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_a_rule_is_broken_by_what_is_planted(rule: Rule, planted: Mapping[str, list[Node]]) -> None:
    assert _faults(rule, planted["faulty"]) == BROKEN[rule]


def _node(
    primitive: str, *tensors: tuple[str, tuple[int, ...]], arguments: str = "", attributes: str = ""
) -> Node:
    inputs = tuple((TensorType(*tensor),) for tensor in tensors)
    return Node(primitive, arguments, attributes, inputs, (), ())


def test_the_ends_of_segments_go_to_the_host_once_a_graph() -> None:
    node = _node("TensorToTuple", ("Int64", (4,)), attributes='kernel_backoff_with_failure_info: ""')
    assert _faults(rules.fallbacks, [node]) == []
    assert _faults(rules.fallbacks, [node] * 2) == [
        "TensorToTuple is there 2 times: the host is waited for at each"
    ]
    assert _faults(rules.long_integers, [node]) == []


@pytest.mark.parametrize("primitive", ["NoSuchPrimitive", "BesselJ1", "?"])
def test_a_primitive_without_evidence_is_a_fault(primitive: str) -> None:
    assert len(_faults(rules.undocumented, [_node(primitive)])) == 1


@pytest.mark.parametrize(
    ("primitive", "tensors"),
    [
        ("RmsNorm", ("BFloat16", "Float16")),
        ("RmsNormGrad", ("BFloat16", "BFloat16", "BFloat16", "BFloat16")),
        ("RotaryPositionEmbedding", ("BFloat16", "Float32", "Float32")),
        ("Swiglu", ("Float64",)),
        ("GeluExt", ("Int32",)),
        ("NLLLoss", ("Float32", "Int8", "Float32")),
        ("LayerNormGradExt", ("BFloat16", "BFloat16", "BFloat16", "BFloat16")),
    ],
)
def test_other_dtypes_than_those_of_the_table_are_a_fault(primitive: str, tensors: tuple[str, ...]) -> None:
    assert len(_faults(rules.dtypes, [_node(primitive, *((dtype, (32,)) for dtype in tensors))])) == 1
    allowed = SUPPORT.dtypes[primitive][0]
    assert _faults(rules.dtypes, [_node(primitive, *((dtype, (32,)) for dtype in allowed))]) == []


@pytest.mark.parametrize(
    ("shape", "numbers", "fault"),
    [
        ((2**20 + 16, 2, 64), (0, 0, 4, 3), "has 1048592 tokens; TND takes 1048576"),
        ((64, 300, 64), (0, 0, 4, 3), "has 300 heads; it takes 256"),
        ((64, 2, 64), (0, 0, 4, 0), "has sparse mode 0; TND takes 2 or 3 with a mask (2048, 2048) of uint8"),
        ((64, 2, 1024), (7, 0, 3, 0), "has heads 1024 wide; it takes multiples of 16 up to 512"),
    ],
)
def test_a_limit_of_flash_attention(shape: tuple[int, ...], numbers: tuple[int, ...], fault: str) -> None:
    mask = ("UInt8", (2048, 2048))
    arguments = ", ".join(f"I64({number})" for number in numbers)
    node = _node("FlashAttentionScore", ("BFloat16", shape), mask, arguments=arguments)
    found = [fault.removesuffix(" (?)") for fault in rules.packed_attention([node], SUPPORT)]
    assert found == [f"FlashAttentionScore {fault}"]


def test_where_segments_end_has_limits_too() -> None:
    assert list(rules.end_faults([3, 4, 16], 16)) == []
    assert list(rules.end_faults([*range(1, 1024), 2048], 2048)) == []
    assert list(rules.end_faults([3, 3, 16], 16)) == [
        "segments are of lengths [3, 0, 13]; TND takes none of zero"
    ]
    assert list(rules.end_faults([3, 15], 16)) == ["the last segment ends at 15 of 16 tokens"]
    assert list(rules.end_faults([*range(1, 1026)], 1025)) == ["there are 1025 segments; TND takes 1024"]


def test_the_kernels_of_a_layer_are_bounded() -> None:
    one, layer = [_node("MatMul")], [_node("MatMul"), _node("Reshape")]
    assert list(rules.layer_faults(one, one + layer * 40)) == []
    assert list(rules.layer_faults(one, one + layer * 41)) == [
        "a Llama layer has 41 kernels, forward and backward; at most 40"
    ]


def test_a_layer_is_held_against_the_count() -> None:
    """Two products of (4, 4) in bfloat16, 96 bytes each; a count that is off by one kernel, or by 5 bytes."""
    square = TensorType("BFloat16", (4, 4))
    product = replace(_node("MatMul"), inputs=((square,), (square,)), outputs=(square,))
    counted = [Kernel("MatMul", "products", 64, 32)] * 2
    assert list(rules.count_faults([product], [product] * 3, counted)) == []
    assert list(rules.count_faults([product], [product] * 2, counted)) == [
        "a Llama layer has 1 kernels; `janus info --device Ascend` counts 2",
        "a Llama layer moves 96 bytes; `janus info --device Ascend` counts 192",
    ]
    more = [*counted[:1], replace(counted[1], reads=69)]
    (fault,) = rules.count_faults([product], [product] * 3, more)
    assert fault.endswith("counts 197")


def test_the_table_holds_what_no_docstring_says_and_nothing_else() -> None:
    assert [name for name in SUPPORT.allowed if "Ascend" in platforms(name)] == []
    assert [name for name in SUPPORT.functions if "Ascend" in platforms(name)] == []
    spoken = {name: platforms(name, function) for name, function in SUPPORT.functions.items()}
    assert [name for name, said in spoken.items() if "Ascend" not in said] == []
    assert platforms("SparseSoftmaxCrossEntropyWithLogits") == ("GPU", "CPU")


def test_a_graph_that_was_not_compiled_is_a_fault(tmp_path: Path) -> None:
    """Without stand-ins there is no Ascend to compile for."""
    (one,) = compile_all([Graph("measure", "tiny", "O1")], tmp_path, {"PATH": "/usr/bin:/bin"})
    assert one.nodes == []
    assert "Ascend cannot be used" in one.words


def test_the_dry_run_says_what_is_missing_and_does_not_pretend() -> None:
    done = execute(sys.executable, "-m", "bench.ascend.audit.dryrun", code=2, LD_LIBRARY_PATH="")
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("CANN is not here, nothing was compiled: libascend_hal.so, libascendcl.so, ")


@pytest.mark.slow
def test_the_dry_run_goes_through_every_level_with_libraries_that_load(libraries: Path) -> None:
    """Stand-ins bring it through the front end, and no further: they do not pass for CANN."""
    command = ("-m", "bench.ascend.audit.dryrun", "--preset", "tiny", "--only", "measure")
    done = execute(
        sys.executable,
        *command,
        code=1,
        LD_LIBRARY_PATH=libraries,
        ASCEND_HOME_PATH=libraries.parent,
    )
    front_end, device = done.stdout.splitlines()
    assert front_end.startswith("level 0: measure (tiny, bfloat16) O1 passed, ")
    assert device.startswith("level 1: measure (tiny, bfloat16) O1 FAILED: ")


@pytest.mark.slow
def test_without_a_compiler_the_front_end_alone_is_asked(tmp_path: Path) -> None:
    """No g++, no nm on the path: names and dtypes are looked at all the same, and that is said."""
    only = ("--only", "accumulate text", "--only", "update")
    done = execute(sys.executable, "-m", "bench.ascend.audit", *only, PATH=tmp_path)
    first, *graphs, last = done.stdout.splitlines()
    assert first.startswith("g++, nm, ldd missing, so there are no stand-ins")
    assert len(graphs) == 3
    assert last.endswith("names and dtypes of the front end are in order; nothing was compiled")
