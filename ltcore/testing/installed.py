"""Checks of what is installed, for the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ltcore.discovery import catalogue
from ltcore.discovery.offer import Offer
from ltcore.errors import PluginError, RecipeError, listed, nearest
from ltcore.testing.report import CHECKS, Check, Report


def check_installed(
    names: Sequence[str] = (), without: Sequence[str] = (), jobs: int | None = None
) -> Iterator[Report]:
    """Check installed methods; the reports come in the order of the names.

    Args:
        names: which; by default every method that is not core's own.
        without: checks to leave out.
        jobs: in how many processes, at most as many as there are methods. By default one per core that this process may
            use. With a GPU it is one, because processes that are forked cannot share it.

    Raises:
        RecipeError: there is no such check, or there cannot be so many processes.
        RunError: one of several processes ended.
        PluginError: nothing installed has one of the names, or two distributions have it; nothing has been checked.
    """
    for check in without:
        if check not in CHECKS:
            raise RecipeError(f"there is no check '{check}'{nearest(check, CHECKS) or ';'} there is {listed(CHECKS)}")
    installed = catalogue.offers()
    wanted = [catalogue.asked(name) for name in names] or [
        offer for offer in installed if offer.distribution != "ltcore"
    ]
    if not wanted:
        raise PluginError("no plugin is installed; name one of core's own methods, such as: ltcore check synthetic")
    tasks = [(offer, without, [other for other in installed if other.name == offer.name]) for offer in wanted]
    if jobs == 1 or len(tasks) == 1:
        yield from map(_of_task, tasks)
        return
    from ltcore.testing import workers

    workers.prepare(wanted, without, jobs := min(workers.possible(jobs), len(tasks)))
    yield from workers.spread(tasks, _of_task, jobs, lambda task: f"'{task[0].name}'")


def _of_task(task: tuple[Offer, Sequence[str], list[Offer]]) -> Report:
    return _checked(*task)


def _checked(offer: Offer, without: Sequence[str], same_name: list[Offer]) -> Report:
    tried = "its entry point" if offer.is_packaged else "its file"
    try:
        kind = catalogue.load(offer)
    except PluginError as error:
        change = f"let python -c 'import {offer.module}' pass" if offer.is_packaged else f"change {offer.distribution}"
        failed = Check("import", tried, "failed", str(error), change)
        return _only(offer, failed)
    if len(same_name) > 1:
        both = " and ".join(f"{other.distribution} {other.version}" for other in same_name)
        failed = Check(
            "import", tried, "failed", f"{both} offer the same name", "uninstall one of them, or rename yours"
        )
        return _only(offer, failed)
    from ltcore.testing import conformance

    return conformance(kind, without=without)


def _only(offer: Offer, check: Check) -> Report:
    return Report(offer.name, f"{offer.distribution} {offer.version}", (check,))
