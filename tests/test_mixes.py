"""Methods of different papers in one recipe, over several stages: each mix trains to its end, and each method acts."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BASE = "optimizer: {name: sgd, lr: 0.05}, batch_size: 16"
FIRST = f"{{name: one, epochs: 3, {BASE}, "
SECOND = f"{{name: two, epochs: 2, {BASE}, trainable: [classifier], "
GENERATOR = f"{{name: generator, epochs: 2, {BASE}, methods: [stg], classification: false, trainable: [stg]}}"

MIXES = {
    "GraLoss with SAFA": (
        "{gra_loss: {}, safa: {options: {start_epoch: 1}}}",
        f"[{FIRST} methods: [gra_loss, safa], trainable: [backbone, classifier, safa]}}]",
        {"gra_loss", "safa"},
    ),
    "AFG after LDAM-DRW": (
        "{ldam: {}, drw: {options: {start_epoch: 1}}, afg: {options: {head_images: 10}}}",
        f"[{FIRST} methods: [ldam, drw]}}, {SECOND} methods: [afg]}}]",
        {"ldam", "drw", "afg"},
    ),
    "STG with LWS": (
        "{mixup: {}, stg: {}, lws: {}}",
        f"[{FIRST} methods: [mixup]}}, {GENERATOR}, {SECOND} methods: [stg, lws], sampler: class_balanced}}]",
        {"mixup", "stg", "lws"},
    ),
    "GLAG whole, after SAFA, then tau-norm": (
        "{gra_loss: {}, safa: {options: {start_epoch: 1}}, lws: {}, afg: {options: {head_images: 10}}, "
        "distillation: {options: {head_images: 10}}, tau_norm: {}}",
        f"[{FIRST} methods: [gra_loss, safa], trainable: [backbone, classifier, safa]}}, "
        f"{SECOND} methods: [lws, afg, distillation], cache: eval}}]",
        {"gra_loss", "safa", "lws", "afg", "distillation"},
    ),
}


@pytest.mark.parametrize("mix", MIXES)
def test_the_mix_trains_and_every_method_acts(mix, make_run, monkeypatch):
    methods, stages, expected = MIXES[mix]
    from ltcore.discovery.binding import Implementation

    acted, bind = set(), Implementation.bind

    def watching(self, *arguments, **keywords):
        call = bind(self, *arguments, **keywords)

        def watched(*values, **named):
            if self.hook not in ("on_run_start", "on_stage_start"):
                acted.add(self.entry.key)
            return call(*values, **named)

        return watched

    monkeypatch.setattr(Implementation, "bind", watching)
    calibrate = "[tau_norm]" if "tau_norm" in methods else "[]"
    run = make_run(
        data="{use: synthetic, options: {class_counts: [48, 24, 10, 6], image_size: 8, test_per_class: 8}, holdout: 1}",
        methods=methods,
        stages=stages,
        calibrate=calibrate,
    )
    result = run.execute()
    assert expected <= acted
    assert result["after_calibration"]["top1"] > 0.25  # four classes


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import mixes

    return mixes


def test_the_page_of_random_mixes_is_made_of_their_record(drawn):
    content = json.loads(drawn.RECORD.read_text())
    assert drawn.page(content) == drawn.PAGE.read_text()
    assert {mix["outcome"] for mix in content["mixes"]} <= {"trained", "refused"}, "look into the others"


@pytest.mark.parametrize(
    ("methods", "expected", "said"),
    [
        ("{focal: {}, feature_dropout: {}}", "trained", ""),
        ("{focal: {}, feature_dropout: {options: {p: 0}}}", "half", "'feature_dropout' has not acted"),
        ("{focal: {}, label_aware_smoothing: {}}", "refused", "'focal' and 'label_aware_smoothing' both compute"),
        ("{focal: {}, safa: {options: {tap: no}}}", "refused", "'safa'"),
    ],
)
def test_what_comes_of_a_random_mix_is_told(drawn, tmp_path, methods, expected, said):
    path = tmp_path / "mix.yaml"
    data = "{use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 8, test_per_class: 4}}"
    names = ", ".join(name.split(":")[0] for name in methods[1:-1].split("}, "))
    path.write_text(
        f"name: mix\ndata: {data}\nbackbone: {{use: cifar_resnet, options: {{depth: 8, width: 4}}}}\n"
        f"methods: {methods}\nstages: [{FIRST} methods: [{names}]}}]\n"
    )
    found = drawn.outcome(path, tmp_path / "runs")
    assert found["outcome"] == expected and said in found["message"]
    assert ("top1" in found) == (expected != "refused")
