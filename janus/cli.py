"""The `janus` command."""

import json
from pathlib import Path
from typing import Any

import click

from janus.common.errors import UserError
from janus.common.options import DEVICE, DEVICE_ID, FOLDER, MODE, Group, add_options, option_fields
from janus.generate.command import Request
from janus.inspect.costs import Load
from janus.inspect.projection import Card, Step


@click.group(cls=Group)
def main() -> None:
    """Use, inspect and convert Janus-Pro models; check this device against reference cases."""


@main.command()
@click.argument("model", metavar="DIR|HUB_ID")
@add_options(Request)
def generate(model: str, **options: Any) -> None:
    """Answer prompts, or draw pictures, with the weights of MODEL.

    \b
    janus generate MODEL --prompt "Does aspirin thin the blood?"
    janus generate MODEL --image scan.png --prompt "Is there a fracture?"
    janus generate MODEL --draw "a blue porcelain vase" --num-images 4
    janus generate MODEL --draw "Make it blue." --image vase.png
    janus generate MODEL --chat conversations.jsonl

    Answers go to standard output. Each picture is a PNG in OUT that records prompt, seed and model.
    """
    from janus.generate.command import run

    run(model, Request(**options))


@main.command()
@click.argument("model", metavar="DIR|PRESET|HUB_ID")
@add_options(Load)
@click.option(
    "--train-gen-embed/--no-train-gen-embed", default=True, help="Train the image embedding table too."
)
@click.option(
    "--device",
    type=click.Choice(["CPU", "Ascend"], case_sensitive=False),
    default="CPU",
    help="Ascend: project memory and time of a step there; not measured.",
)
@add_options(Step, only_given=True)
@add_options(Card, only_given=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(model: str, train_gen_embed: bool, device: str, as_json: bool, **options: Any) -> None:
    """Describe MODEL and the memory that training each stage needs. Reads no weights.

    \b
    janus info 1b --dtype bfloat16
    janus info 7b --device Ascend --batch t2i:8x632 --batch vqa:2x660:5
    """
    from janus.checkpoint.folder import open_model
    from janus.inspect import costs, projection

    step, card = ({n: options.pop(n) for n in option_fields(cls) if n in options} for cls in (Step, Card))
    folder, load = open_model(model), Load(**options).on(device)
    if device == "Ascend":
        lines = projection.lines
        description = projection.project(folder.config, load, Step(**step), Card(**card), train_gen_embed)
    elif step or card:
        raise UserError(f"{next(iter(step | card))}: goes with --device Ascend alone")
    else:
        description, lines = costs.describe(folder, load, train_gen_embed), costs.lines
    for line in [json.dumps(description)] if as_json else lines(description):
        click.echo(line)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
@click.option("--mode", type=MODE, default="graph", help="Compiled graphs, or op by op.")
@click.option("--device", type=DEVICE, default="auto", help="Where to compute.")
@click.option("--device-id", type=DEVICE_ID, metavar="N", default=0, help="Which Ascend, of several.")
@click.option("--peer", type=click.Choice(["mindone"]), help="Also run this one's Janus on the same cases.")
def verify(folder: Path, mode: str, device: str, device_id: int, peer: str | None) -> None:
    """Compare this device's numbers with the reference cases in DIR.

    DIR holds cases.safetensors, cases.json and the weights in hf-format, deepseek-format or both. Prints a
    table to paste into an issue: the largest difference of each quantity and its tolerance, on Ascend in
    float32 and in bfloat16; exits 1 if any exceeds it. Then, of mindone's Janus beside ours: losses, gradient
    norms, time of forward and backward, memory.
    """
    from janus.device import use
    from janus.inspect.table import write_table

    used = use(device, "float32", device_id, deterministic=True)
    raise SystemExit(write_table(folder, mode, used, peer, click.echo))


@main.command()
@click.argument("model", metavar="DIR|HUB_ID")
@click.argument("target", type=FOLDER, metavar="NEW_DIR")
def cases(model: str, target: Path) -> None:
    """Write reference cases of MODEL into NEW_DIR, computed here, for `janus verify` on another device.

    NEW_DIR links to the weights: copy it with `rsync -aL`.
    """
    from janus.checkpoint.folder import open_model
    from janus.device import use
    from janus.inspect.record import write_cases

    use("CPU", "float32")
    write_cases(open_model(model), target)
    click.echo(f"{target}: cases for janus verify")


@main.command()
@click.argument("source", metavar="DIR|HUB_ID")
@click.argument("target", type=FOLDER, metavar="NEW_DIR")
@click.option("--layout", type=click.Choice(["transformers", "deepseek"]), required=True)
@click.option("--dtype", type=click.Choice(["bfloat16", "float32", "as-is"]), default="as-is")
def convert(source: str, target: Path, layout: str, dtype: str) -> None:
    """Write the checkpoint SOURCE in another layout or dtype into NEW_DIR.

    Tensors that both layouts have are copied bit for bit, unless --dtype changes them. DeepSeek's attn_pool
    and codebook_used, which affect no output, are left out.
    """
    from janus.checkpoint.folder import convert as convert_model
    from janus.checkpoint.folder import open_model

    convert_model(open_model(source), target, layout, dtype)
    click.echo(f"{target}: {layout} layout, {dtype}")
