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
    System(
        "rsg_ldam_drw",
        ("ldam_drw",),
        "RSG makes rows only in the last 8 of 40 epochs, from the variation of two head classes. When it begins, the "
        "maps are far from their centres: the loss is 134, of which LDAM-DRW's loss is 0.6 (seed 2). So a made row "
        "probably has most of a head map in it, and not only its variation.",
    ),
    System(
        "sla_ldam_drw",
        ("ldam_drw",),
        "in every seed, few-shot classes lose 3 to 9 points, and medium-shot classes gain. The loss ends at 0.70, and "
        "that of LDAM-DRW at 0.21 (seed 2). SLA learns forty joint labels, and the rarest of "
        "them have only five images each. These are harder to learn than ten labels. Fewer rotations were not tried.",
    ),
    System(
        "isda",
        ("ce",),
        "ISDA has an effect on the loss, which ends at 0.021, and with cross-entropy at 0.001 (seed 0). But its "
        "covariances of 64 features come from only 5 to 18 images in the rare classes.",
    ),
    System(
        "metasaug",
        ("drw_held",),
        "up to epoch 32, MetaSAug and its baseline are the same, to the bit, and have learned their images (loss "
        "0.0015). After that, the augmentation changes the loss from 0.002 to 0.004 (seed 2) and hardly any "
        "prediction. On the digits, larger strengths and rates did not help either (plugins/isda/README.md).",
    ),
    System(
        "l2rw",
        ("ce_held",),
        "few-shot classes gain 15 to 17 points, and many-shot classes lose 23 to 32. L2RW prefers images that help a "
        "balanced batch, which are probably rare ones. So the frequent classes are not learned (the loss ends at 0.5, "
        "seed 0).",
    ),
    System(
        "meta_weight_net",
        ("ce_held",),
        "Meta-Weight-Net weights an image by its loss alone. When all images are learned (loss 0.001, seed 2), their "
        "losses no longer show which images are rare.",
    ),
    System("bbn", ("ce",)),
    System(
        "disalign",
        ("ce", "crt"),
        "DisAlign is above cross-entropy, but not above cRT. cRT trains nearly eight times as many parameters on the "
        "same frozen features.",
    ),
    System(
        "cb_fine_tuning",
        ("ce",),
        "few-shot classes lose most, although the subset is balanced. The reason is batch norm: each batch has the "
        "same fifty images, and their statistics replace those of all images. If the network is frozen (`trainable: "
        "[classifier]`), the result stays at that of cross-entropy (68.7 and 68.6, seeds 0 and 1). 20 steps in place "
        "of 200 (60.9, seed 0), or a tenth of the rate (59.0, seed 0), do not help.",
    ),
    System(
        "lfme",
        ("lfme_student",),
        "on few-shot classes the expert has 77 percent among its own classes, and the student 46 among all (seed 0). "
        "The experts of the medium-shot and few-shot classes still teach at the end, with weights 0.38 and 0.69. But "
        "the student has learned its training images by then (loss 0.017), so it has little left to learn from them.",
    ),
    System(
        "fslwf",
        ("ce",),
        "the network learns from the six base classes alone, and its features fit the others badly. Generated weights "
        "bring few-shot classes from 0 to 43 percent, and many-shot classes lose 16 points (seed 0). The paper has "
        "389 base classes, whose weights the attention combines. Here there are six.",
    ),
    System(
        "ssp",
        ("ce",),
        "the network learns to tell rotations (the loss ends at 0.008, seed 0). But it sees the same 694 images as "
        "cross-entropy does, and no others. Behind it, cross-entropy ends at the same loss as without it (0.001).",
    ),
    System("ssd", ("ce",)),
    System("m2m", ("m2m_drs",)),
    System(
        "oltr",
        ("ce", "oltr_plain"),
        "a second stage without OLTR's parts gains a little by itself (69.4 after 68.6, seed 0). With attention, "
        "memory and meta-embedding, the loss ends higher (0.038, and 0.005 without them) and the accuracy lower, in "
        "each seed. The memory has one centre per class, from as few as five images.",
    ),
    System(
        "range_loss",
        ("m_per_class",),
        "the loss ends at 2.0, and without range loss at 0.004 (seed 0), so it has an effect. It is positive in two "
        "of three seeds, and smaller than the difference between seeds.",
    ),
    System(
        "lifted_structure",
        ("m_per_class",),
        "both arms learn their images (losses of 0.003 and 0.004, seed 0). Medium-shot classes gain in each seed. "
        "Few-shot classes lose 3.8 points in one seed and gain 7.4 in another.",
    ),
    System("bag_of_tricks", ("bag_drs", "bag_of_tricks:stage_one")),
    System("feature_dropout", ("feature_none",)),
    System("feature_noise", ("feature_none",)),
    System("ride", ("ride_one",)),
    System(
        "ride_router",
        ("ride",),
        "the router learns from training images, and the first expert recognises all of them. So it never asks a "
        "second expert (1.0 experts per image), and the result is that of the first expert alone.",
    ),
    System(
        "vs",
        ("balanced_softmax",),
        "with the authors' pair for CIFAR-10 (gamma 0.2, tau 1.2), few-shot classes gain 9 points over balanced "
        "softmax, and many-shot and medium-shot classes lose as much. Weaker pairs were not tried here.",
    ),
    System(
        "lade",
        ("balanced_softmax",),
        "in batches of 32 images a rare class is mostly absent, and then LADE's term only lowers its logits. The loss "
        "falls to -0.26, where that of balanced softmax ends at 0.001 (seed 0). Larger batches help: with 128 images, "
        "LADE has 71.9 and balanced softmax 73.6, and with 32 they have 67.8 and 72.6 (seed 0). On the digits, in "
        "batches of 64, LADE is above logit adjustment (plugins/lade/README.md).",
    ),
    System(
        "influence_balanced",
        ("ce",),
        "its schedule has a hundredth of the rate from epoch 20 on, when the images are not learned yet (the loss is "
        "0.1, seed 0). On the digits, cross-entropy with that schedule loses 7 points, and the influence-balanced "
        "loss gains them back (plugins/influence_balanced/README.md). Here cross-entropy has its own schedule.",
    ),
    System("gcl", ("gcl_plain",)),
    System("weight_balancing", ("ce",)),
    System(
        "sade",
        ("sade_balanced",),
        "the baseline has the same three experts, each with balanced softmax. The mean of the experts answers, and its "
        "many-shot and few-shot classes differ from the baseline's by less than seeds differ. SADE's weights at test "
        "time, which are for other shares of the test classes, are not part of ltcore.",
    ),
    System(
        "balpoe",
        ("balpoe_balanced",),
        "the baseline has the same three experts, each with a strength of 1. BalPoE's strengths are 0, 1 and 2, so the "
        "mean of the logits is balanced in both.",
    ),
    System(
        "bcl",
        ("balanced_softmax",),
        "the contrast has an effect on the loss (0.62 at the end, seed 0). The baseline is strong here: balanced "
        "softmax has 72.6, which is four points above cross-entropy. Two of three seeds are above it.",
    ),
    System("proco", ("balanced_softmax",)),
    System("cmo", ("balanced_softmax",)),
    System("autoaugment_by_class", ("balanced_softmax",)),
    System(
        "sam",
        ("ce",),
        "SAM fits the images less closely (the loss ends at 0.004, and at 0.001 without it, seed 0). No group of "
        "classes gains in each seed. The radius is that of the recipe; others were not tried.",
    ),
    System(
        "imbsam",
        ("ce",),
        "few-shot classes gain in each seed, by 0.7 to 8.8 points, and medium-shot classes lose in two. The effect on "
        "top-1 is smaller than the difference between seeds.",
    ),
    System("focal_sam", ("ce",)),
    System(
        "sam_ldam_drw",
        ("ldam_drw",),
        "as for `sam`: the loss ends higher (0.144, and 0.115 without it, seed 0), and few-shot classes do not gain.",
    ),
    System(
        "ema",
        ("ce_constant",),
        "once the images are learned (loss 0.0007, seed 0), the weights hardly move. So their average is nearly the "
        "last weights.",
    ),
)
#: Those of their baselines that the other suite has, too. It was trained before them, and by other code.
SHARED = {"ce", "crt", "ldam_drw", "balanced_softmax"}


def arms() -> list[str]:
    """Every row of them, baselines included, once."""
    return list(dict.fromkeys(name.partition(":")[0] for each in SYSTEMS for name in (*each.bases, each.row)))
