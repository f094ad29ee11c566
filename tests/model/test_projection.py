"""`janus info --device Ascend`: kernels, memory by part and projected times against hand counts."""

import json
from collections import Counter
from dataclasses import replace
from math import prod

import pytest
from commands import invoke
from paths import ROOT

from bench.ascend import projection as page
from janus.cli import main
from janus.inspect.ascend import holder, llama_layer, micro_batch, siglip_layer
from janus.inspect.costs import Load, operations
from janus.inspect.kernels import Kernel, Part, update
from janus.inspect.projection import Card, MicroBatch, Step, project
from janus.model.config import PRESETS, JanusConfig, TextConfig, VisionConfig, VQConfig
from janus.model.janus import parameter_shapes, part_of
from janus.model.stages import trained_parts
from janus.prompts import SIGNATURES

TOY = JanusConfig(
    TextConfig(hidden_size=8, num_layers=3, num_heads=2, intermediate_size=5, vocab_size=11),
    VisionConfig(hidden_size=6, num_layers=2, num_heads=3, intermediate_size=7, image_size=32),
    VQConfig(num_embeddings=13, embed_dim=4),
)
POSITIONS, SPANS = 10, (4, 6)  # D 8, F 5, H 2, K 4
X, INNER = 2 * POSITIONS * 8, 2 * POSITIONS * 5  # bytes of (P, D) and (P, F) in bfloat16
ANGLES, MASK, STATS = 2 * 2 * POSITIONS * 4, 2048**2, 2 * 8 * 4 * POSITIONS * 2


def _step(*batches: MicroBatch, config: JanusConfig = TOY, stage: int = 3, dtype: str = "bfloat16") -> dict:
    return project(config, Load(dtype=dtype), Step(stage, batches), Card(), True)


def test_a_llama_layer_is_these_kernels() -> None:
    """(name, bytes read, bytes written, operations) of every kernel, by hand."""

    def product(m: int, k: int, n: int) -> tuple[str, int, int, int]:
        return "MatMul", 2 * (m * k + k * n), 2 * m * n, 2 * m * k * n

    def sums(elements: int, size: int) -> tuple[str, int, int, int]:
        return "AssignAdd", (size + 4) * elements, 4 * elements, 0

    norm = [("AddRmsNorm", 2 * X + 16, 2 * X + 40, 0), ("RmsNormGrad", 2 * X + 40 + 16, X + 32, 0)]
    norm += [("AddN", 2 * X, X, 0), sums(8, 4)]
    rotary = [(f"RotaryPositionEmbedding{end}", X + ANGLES, X, 0) for end in ("", "Grad")]
    squares = 16 + 36
    expected = [*norm, *norm, *rotary, *rotary]
    expected += [("Split", 3 * X, 3 * X, 0), ("Concat", 3 * X, 3 * X, 0)]
    expected += [("FlashAttentionScore", 3 * X + MASK, X + STATS, 4 * 8 * squares)]
    expected += [("FlashAttentionScoreGrad", 5 * X + STATS + MASK, 3 * X, 8 * 8 * squares)]
    expected += [("Swiglu", 2 * INNER, INNER, 0), ("SwigluGrad", 3 * INNER, 2 * INNER, 0)]
    for inputs, outputs in ((8, 24), (8, 8), (8, 10), (5, 8)):
        expected += [product(10, inputs, outputs), product(10, outputs, inputs), product(inputs, 10, outputs)]
        expected += [sums(inputs * outputs, 2)]
    found = [
        (kernel.name, kernel.reads, kernel.writes, kernel.operations)
        for kernel in llama_layer(TOY.text, POSITIONS, SPANS, Part(2, trained=True))
    ]
    assert Counter(found) == Counter(expected)
    assert len(found) == 34  # as `make ascend-audit` holds it to


@pytest.mark.parametrize(("trained", "launches"), [(True, 55), (False, 16)])
def test_a_siglip_layer_has_as_many_kernels_as_the_compiler_makes(trained: bool, launches: int) -> None:
    """Counted in its dumps of one and two layers. Frozen: 6 products, 4 biases, 2 sums, 2 norms, 2 others."""
    layer = list(siglip_layer(TOY.vision, 2, Part(2, trained, passes=trained)))
    assert len(layer) == launches
    names = Counter(kernel.name for kernel in layer)
    assert (names["MatMul"], names["LayerNorm"], names["FlashAttentionScore"]) == (18 if trained else 6, 2, 1)
    assert sum(kernel.kept for kernel in layer) == (0 if not trained else _kept_by_siglip(2))


def _kept_by_siglip(images: int) -> int:
    """8 of (M, D) (as a Llama's layer), the inner activation before and after GELU, statistics."""
    patches = images * TOY.num_image_tokens
    return 2 * patches * (8 * 6 + 2 * 7) + 2 * 8 * patches + 64 * patches * 3


def test_a_layer_keeps_what_its_backward_reads() -> None:
    """Trained: 8 of (P, D) (input, normed, q, k, v, attended, middle, normed), 3 of (P, F), statistics."""
    for trained, kept in ((True, 8 * X + 3 * INNER), (False, 6 * X + 2 * INNER)):
        layer = llama_layer(TOY.text, POSITIONS, SPANS, Part(2, trained))
        assert sum(kernel.kept for kernel in layer) == kept + STATS + 2 * 4 * POSITIONS


def test_a_frozen_layer_computes_no_gradient_of_a_weight() -> None:
    names = Counter(k.name for k in llama_layer(TOY.text, POSITIONS, SPANS, Part(2, trained=False)))
    assert (names["MatMul"], names["AssignAdd"]) == (8, 0)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("task", SIGNATURES)
def test_operations_are_those_of_the_training_log(task: str, stage: int) -> None:
    """But for the first products of a part whose inputs need no gradient, which `operations` counts too."""
    trained = trained_parts(stage, True)
    work = Load(rows=2, length=10, answer=3).work(TOY, task)
    counted = sum(k.operations for k in micro_batch(TOY, work, trained, "bfloat16"))
    patches = work.understood * TOY.num_image_tokens
    needless = 2 * patches * (3 * 16**2 * 6 if "siglip" in trained else 6 * 8)
    assert counted + needless == operations(TOY, work, trained)


def test_float32_casts_pixels_alone_and_has_plain_attention() -> None:
    work = Load(rows=2, length=10, answer=3).work(TOY, "vqa")
    names = Counter(k.name for k in micro_batch(TOY, work, trained_parts(3, True), "float32"))
    layers = TOY.text.num_layers + TOY.vision.num_layers
    assert (names["Cast"], names["Softmax"], names["BatchMatMul"]) == (1, layers, 6 * layers)
    assert names["FlashAttentionScore"] == 0


def test_an_update_moves_these_bytes() -> None:
    """Of a weight of 10: norm 4 bytes each, clip 8, AdamW 16 + 12, empty the buffer 4, round it 4 + 2."""
    moved = {kernel.name: kernel.reads + kernel.writes for kernel in update(10, rounded=True)}
    one = 4  # a number that is written or read beside them
    assert moved == {
        "SquareSum": 40 + one,
        "Mul": 80,
        "AdamApplyOneWithDecayAssign": 280,
        "Fill": 40 + one,
        "Cast": 60,
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memory_is_that_of_every_weight(dtype: str) -> None:
    """A vqa step runs through neither image head nor codes: they lie in memory but are not trained."""
    network, trained, masters, in_graph = 0, 0, 0, 0
    for name, shape in parameter_shapes(TOY).items():
        part, n = part_of(name), prod(shape)
        table = "embed_tokens" in name or "generation_embeddings" in name or ".embeddings." in name
        size = 2 if dtype == "bfloat16" and not table else 4
        network += size * n * (part != "vq")
        if part in {"siglip", "aligner", "llama", "lm_head"}:
            trained += n
            in_graph += size * n
            masters += 4 * n * (size == 2)
    memory = _step(MicroBatch("vqa", 1, 10, 3), dtype=dtype)["memory"]
    names = ("weights", "masters", "gradients", "in_graph", "moments")
    assert [memory[name] for name in names] == [network, masters, 4 * trained, in_graph, 8 * trained]
    assert memory["total"] == sum(memory[name] for name in (*names, "activations"))


def test_memory_of_activations_is_that_of_the_largest_task() -> None:
    batches = [MicroBatch(task, 2, 10, 3) for task in ("text", "vqa", "t2i")]
    alone = [_step(batch)["memory"]["activations"] for batch in batches]
    assert _step(*batches)["memory"]["activations"] == max(alone) > min(alone)


def test_activations_are_those_alive_at_the_peak_of_a_dump() -> None:
    """Four layers of `bench`, four pictures of 588 tokens: 633 MB in MindSpore's dump for an Ascend."""
    bench = PRESETS["bench"]
    config = replace(bench, text=replace(bench.text, num_layers=4))
    memory = _step(MicroBatch("t2i", 4, 592, 1), config=config)["memory"]
    assert memory["activations"] == pytest.approx(633e6, rel=0.01)


def test_7b_does_not_fit_and_1b_does() -> None:
    """18 bytes a parameter, 123.0 and 33.6 GiB; but float32 tables need neither a master nor a copy."""
    for name, gib, fits in (("7b", 123.0, False), ("1b", 33.6, True)):
        config = PRESETS[name]
        every = [MicroBatch(task, 1, 640, 5) for task in ("text", "vqa", "t2i")]
        memory = _step(*every, config=config)["memory"]
        codes = config.vq.num_embeddings * config.vq.embed_dim
        tables = config.text.vocab_size * config.text.hidden_size + codes + 3 * 16**2 * 1024 + 577 * 1024
        state = memory["total"] - memory["in_graph"] - memory["activations"]
        assert state / 2**30 == pytest.approx(gib - 2 * tables / 2**30, abs=0.05)
        assert (memory["total"] / 2**30 < 58) is fits


def test_readme_says_what_the_command_computes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for preset in ("1b", "7b"):
        stages = [project(PRESETS[preset], Load(dtype="bfloat16"), Step(n), Card(), True) for n in (1, 2, 3)]
        first, second, third = (f"{stage['memory']['total'] / 2**30:.1f}" for stage in stages)
        assert f"{preset.upper()} {first}, {second} and {third}" in readme


def test_a_kernel_takes_as_long_as_its_slowest_limit() -> None:
    card = Card(peak_tflops=100, product_share=0.5, attention_share=0.25, bandwidth=2, launch_us=3)
    product, moved = Kernel("MatMul", "products", 1, 1, 10**9), Kernel("Add", "adds", 3 * 10**7, 10**7)
    for kernel, seconds in (
        (product, 20e-6),
        (replace(product, group="attention"), 40e-6),
        (moved, 20e-6),
        (replace(moved, name="Gather"), 4e7 / 0.35e12),
        (replace(moved, name="UnsortedSegmentSum"), 4e7 / 0.35e12),
        (replace(moved, name="AdamApplyOneWithDecayAssign"), 4e7 / 0.65e12),
        (Kernel("Add", "adds", 1, 1), 3e-6),
    ):
        assert card.seconds(kernel, "bfloat16") == pytest.approx(seconds)
    assert Card().seconds(product, "float32") == pytest.approx(1e9 / (87e12 * 0.65))


def test_parts_of_a_step_add_up() -> None:
    found = _step(MicroBatch("t2i", 2, 10, 1), MicroBatch("t2i", 2, 10, 1), MicroBatch("vqa", 1, 10, 3))
    assert found["batches"] == ["t2i:2x10", "t2i:2x10", "vqa:1x10:3"]
    for figure in ("operations", "bytes", "launches", "seconds"):
        whole = found["step"][figure]
        assert whole == pytest.approx(sum(group[figure] for group in found["groups"].values()))
        runs = {name: run[figure] for name, run in found["runs"].items()}
        assert whole == pytest.approx(sum(runs[name] for name in (*found["batches"], "update")))


@pytest.mark.parametrize(
    ("row", "trillions", "milliseconds"),
    [(0, 41.2, {"products": 193, "attention": 15, "gradient sums": 13}), (1, 25.7, {}), (3, 25.1, {})],
)
def test_totals_are_those_of_an_earlier_hand_count(
    row: int, trillions: float, milliseconds: dict[str, float]
) -> None:
    """Made for the same samples before there was this count, at 313 TFLOP/s. Its tokens were rounded up."""
    found = page.projected(page.ROWS[row], Card())
    assert found["step"]["operations"] / 1e12 == pytest.approx(trillions, rel=0.03)
    for group, expected in milliseconds.items():
        assert found["groups"][group]["seconds"] * 1e3 == pytest.approx(expected, rel=0.1)


def test_joined_weights_are_one_parameter() -> None:
    layer = "model.language_model.layers.0."
    names = [f"{layer}self_attn.{n}_proj.weight" for n in "qkvo"]
    names += [f"{layer}mlp.{n}_proj.weight" for n in ("gate", "up", "down")]
    assert len({holder(name) for name in names}) == 4
    assert holder("model.vision_model.layers.0.self_attn.q_proj.weight").endswith(".q_proj.weight")


def test_the_command_says_that_it_is_a_projection() -> None:
    arguments = ("info", "tiny", "--device", "ascend", "--batch", "vqa:2x600:5", "--stage", 1)
    text = invoke(main, *arguments).output
    assert text.startswith("projection, not measured: stage 1, bfloat16, a step of vqa:2x600:5\n")
    found = json.loads(invoke(main, *arguments, "--launch-us", 7, "--json").output)
    assert (found["label"], found["card"]["launch_us"]) == ("projection, not measured", 7)
    assert found["card"]["peak_tflops"] == 313
    assert found["step"]["seconds"] >= 7e-6 * found["step"]["launches"]
    every = json.loads(invoke(main, "info", "tiny", "--device", "Ascend", "--rows", 2, "--json").output)
    assert every["batches"] == ["text:2x1024:128", "vqa:2x1024:128", "t2i:2x1024"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--stage", 2), "stage: goes with --device Ascend alone"),
        (("--device", "Ascend", "--batch", "t3i:8x632"), "got 't3i:8x632'"),
        (("--device", "Ascend", "--batch", "t2i:0x632"), "got 't2i:0x632'"),
        (("--device", "Ascend", "--batch", "t2i"), "got 't2i'"),
        (
            ("--device", "Ascend", "--stage", 1, "--batch", "text:1x9"),
            "batch: text:1x9:128 has nothing to train",
        ),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: tuple, said: str) -> None:
    (line,) = invoke(main, "info", "tiny", *arguments, code=2).output.strip().splitlines()
    assert said in line


def test_the_page_holds_what_the_command_prints() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.fill(text) == text, "python -m bench.ascend.projection --write"
    with pytest.raises(ValueError, match="counted operations: start"):
        page.fill("# Ascend\n")
