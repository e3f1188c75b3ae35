"""The systems that the papers compare with, and what users would take instead: rows of tables/league.yaml.

A further system is a row of that table and an entry here. `arms.py systems` trains them, `claims.py` shows them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """A row of the table beside the rows that it is held against.

    Attributes:
        row: its label in the table.
        bases: labels of what it builds on; of ``ROW:stage_one`` the first stage.
        found: what was looked into where it does not lie above them, and what was found.
    """

    row: str
    bases: tuple[str, ...]
    found: str = ""


SYSTEMS = (
    System("rsg_ldam_drw", ("ldam_drw",)),
    System("sla_ldam_drw", ("ldam_drw",)),
    System("isda", ("ce",)),
    System("metasaug", ("drw_held",)),
    System("l2rw", ("ce_held",)),
    System("meta_weight_net", ("ce_held",)),
    System("bbn", ("ce",)),
    System("disalign", ("ce", "crt")),
    System("cb_fine_tuning", ("ce",)),
    System("m2m", ("m2m_drs",)),
    System("oltr", ("ce", "oltr_plain")),
    System("range_loss", ("m_per_class",)),
    System("lifted_structure", ("m_per_class",)),
    System("bag_of_tricks", ("bag_drs", "bag_of_tricks:stage_one")),
    System("feature_dropout", ("feature_none",)),
    System("feature_noise", ("feature_none",)),
    System("ride", ("ride_one",)),
    System("ride_router", ("ride",)),
    System("bcl", ("balanced_softmax",)),
    System("cmo", ("balanced_softmax",)),
    System("autoaugment_by_class", ("balanced_softmax",)),
    System("sam", ("ce",)),
    System("imbsam", ("ce",)),
    System("sam_ldam_drw", ("ldam_drw",)),
    System("ema", ("ce_constant",)),
)
#: Those of their baselines that the other suite has, too. It was trained before them, and by other code.
SHARED = {"ce", "crt", "ldam_drw", "balanced_softmax"}


def arms() -> list[str]:
    """Every row of them, baselines included, once."""
    return list(dict.fromkeys(name.partition(":")[0] for each in SYSTEMS for name in (*each.bases, each.row)))
