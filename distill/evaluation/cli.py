"""`ced-edge agreement`: how near a student comes to its teachers on clips without labels."""

from __future__ import annotations

import json

import click

from ced_edge.options import Number, json_option
from distill.options import device_option, pack_option


@click.command()
@click.argument("checkpoint")
@pack_option
@click.option("--store", "store_path", required=True, help="Folder or URL of the teachers' predictions for it.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Views per prediction.")
@click.option(
    "--level",
    "level_db",
    type=Number(-120, 0),
    default=0.0,
    show_default=True,
    help="Level in dB at which the student gets the views. The teachers' predictions stay those at full level.",
)
@device_option
@json_option()
def agreement(
    checkpoint: str, pack_path: str, store_path: str, batch: int, level_db: float, device: str, as_json: bool
) -> None:
    """Compare a CHECKPOINT with its teachers on the views of a store. No labels are needed.

    Prints the average precision of each class that the teachers find (at 0.3 or more), their mean, and the KL
    divergence. Use a pack of clips that the student was not trained on.
    """
    from distill.teaching.store import Store

    store = Store.open(store_path)
    from ced_edge.network.checkpoint import load_model
    from distill.evaluation.agreement import agreement as compare
    from distill.evaluation.agreement import check_store
    from distill.packing.shards import Pack
    from distill.progress import stage

    pack = Pack.open(pack_path)
    check_store(pack, store)
    model = load_model(checkpoint)
    with stage("agreement", pack.clips * len(store.epochs)) as progress:
        found = compare(model, pack, store, device, batch, level_db, progress).to_dict()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for name, one in sorted(found["per_class"].items(), key=lambda item: -item[1]["ap"]):
        click.echo(f"{one['ap']:.4f}  {one['views']:6}  {name}")
    click.echo(f"mean_ap: {found['mean_ap']:.4f} over {found['classes_present']} classes")
    click.echo(f"kl: {found['kl']:.4f} over {found['views']} views")
