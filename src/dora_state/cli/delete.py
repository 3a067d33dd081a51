"""dora-state delete: forgets keys."""

from __future__ import annotations

import click

from .._core import USER
from ..errors import Conflict
from ..store import Store
from . import places
from .places import Place


@click.command()
@click.argument(
    "keys", nargs=-1, required=True, metavar="KEY...", shell_complete=places.complete_key
)
@click.option("--missing-ok", is_flag=True, help="A key that is not there is fine.")
@click.option("-e", "--escaped", is_flag=True, help="Keys are written as `list` shows them.")
@places.store_options
def delete(place: Place, keys: tuple[str, ...], missing_ok: bool, escaped: bool) -> None:
    """Forget keys.

    All in one commit, or none if one of them is not there. Prints the sequence of the commit.
    """
    names = [places.key_of(key, escaped) for key in keys]
    with places.existing(place).changed() as store:
        click.echo(_delete(place, store, names, missing_ok))
    place.warn_of_clean_end()


def _delete(place: Place, store: Store, names: list[places.Key], missing_ok: bool) -> int:
    while True:
        batch = store.batch()
        for name in names:
            found = store._view(USER, name)
            if found is None and not missing_ok:
                raise places.missing(place, name)
            batch.delete(name, expected=None if found is None else found[1])
        try:
            return batch.commit()
        except Conflict:  # somebody was faster with one of them: look again
            continue
