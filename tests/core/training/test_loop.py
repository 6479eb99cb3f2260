"""The loop as a whole: it learns, resumes to the bit, refuses and reports."""

import dataclasses

import pytest
import torch

from core.dictionaries.files import fingerprint
from core.errors import InputError, NotFinite
from core.options import CHOOSE_K, DICTIONARY_KINDS, NEVER_RESAMPLE, WITHOUT_K
from core.training import Learner, TrainingSettings, loop, rows_within, train_dictionaries
from core.training.checkpoint import checkpoint_file
from core.training.kinds import kind_named
from tests.core.training.sources import Rows, numbered, only, sparse_mixtures

SHORT = TrainingSettings(
    n_features=16,
    n_steps=24,
    batch_size=64,
    warmup_steps=4,
    decay_steps=4,
    resample_every=8,
    dead_after=3,
    checkpoint_every=5,
    k=3,
    learning_rate=2e-3,
    sparsity_warmup_steps=10,
)


class Killed(Exception):
    """Stands for whatever ends a process."""


def killer(at: int):
    def on_step(step, reports):
        if step == at:
            raise Killed

    return on_step


def same(one, other) -> bool:
    return all(
        trained.l0 == other[name].l0
        and trained.curve == other[name].curve
        and fingerprint(trained.dictionary) == fingerprint(other[name].dictionary)
        for name, trained in one.items()
    )


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
def test_every_kind_explains_sparse_mixtures(kind):
    settings = TrainingSettings(
        kind=kind,
        n_features=24,
        n_steps=300,
        batch_size=256,
        learning_rate=1e-2,
        sparsity={"jumprelu": 1e-3, "gated": 0.02}.get(kind, 0.1),
        k=3,
        warmup_steps=10,
        decay_steps=100,
        sparsity_warmup_steps=20,
        resample_every=0,
    )
    source = sparse_mixtures()
    for name, trained in train_dictionaries(source, settings).items():
        x, dictionary = source.values[name], trained.dictionary
        features = dictionary.encode(x)
        error = x - dictionary.decode(features)
        assert 1 - float(error.var(0).sum() / x.var(0).sum()) > 0.8
        assert float((features > 0).float().sum(1).mean()) < 12
        torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.ones(24))


def test_a_submodule_is_learnt_alike_whatever_its_scale():
    x = sparse_mixtures().values["embed"]
    source = Rows({"embed": x, "resid_0": x}, [len(x)], per_document=1)
    large = Rows({"embed": x, "resid_0": 1024 * x}, [len(x)], per_document=1)
    one, other = train_dictionaries(source, SHORT), train_dictionaries(large, SHORT)
    expected = one["resid_0"].dictionary.encode(x)
    found = other["resid_0"].dictionary.encode(1024 * x) / 1024
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
@pytest.mark.parametrize("at", [2, 11, 23])
def test_an_interrupted_training_reaches_the_same_weights(tmp_path, kind, at):
    settings, source = dataclasses.replace(SHORT, kind=kind), sparse_mixtures(1024)
    expected = train_dictionaries(source, settings)
    with pytest.raises(Killed):
        train_dictionaries(source, settings, checkpoint=tmp_path, on_step=killer(at))
    resumed = train_dictionaries(source, settings, checkpoint=tmp_path)
    assert same(resumed, expected)


# -- how many features are active -----------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [3, 40, 1000])
@pytest.mark.parametrize("batch_size", [32, 512])
def test_batch_topk_leaves_k_features_per_token_of_rows_it_never_saw(n_steps, batch_size):
    """The threshold belongs to the final weights, not to those of the first thousand steps."""
    both = sparse_mixtures(8192, d=16, n_directions=48).values["resid_0"]
    source = Rows({"resid_0": both[:4096]}, [4096], per_document=1)
    settings = dataclasses.replace(
        SHORT, kind="batchtopk", k=6, n_features=48, n_steps=n_steps, batch_size=batch_size
    )
    trained = train_dictionaries(source, settings)["resid_0"]
    l0 = float((trained.dictionary.encode(both[4096:]) > 0).sum(1).float().mean())
    assert l0 == pytest.approx(6, rel=0.1)
    assert trained.l0 == pytest.approx(l0, rel=0.05)
    assert trained.wanted_l0 == 6


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
def test_the_measured_l0_is_that_of_the_dictionary_as_returned(kind):
    source = sparse_mixtures(1024)
    settings = dataclasses.replace(SHORT, kind=kind, learning_rate=1e-2)
    for name, trained in train_dictionaries(source, settings).items():
        x = source.values[name]
        # Four passes over the same rows: their order alone differs.
        l0 = float((trained.dictionary.encode(x) > 0).sum(1).float().mean())
        assert trained.l0 == pytest.approx(l0, rel=0.01)
        assert trained.wanted_l0 == (3 if "topk" in kind else None)


# -- in company and alone -------------------------------------------------------------------------

SMALL_BUFFER = dataclasses.replace(SHORT, buffer_bytes=200 * (2 * 16 + 8))


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
def test_dictionaries_trained_alone_are_those_trained_together(kind):
    source, settings = sparse_mixtures(1024), dataclasses.replace(SMALL_BUFFER, kind=kind)
    assert rows_within(settings.buffer_bytes, source.widths) == 200
    together = train_dictionaries(source, settings)
    for name in source.widths:
        alone = train_dictionaries(only(source, [name]), settings, all_widths=source.widths)
        assert same(alone, together)
    # A buffer of its own holds twice the rows, in another order.
    own = train_dictionaries(only(source, [name]), settings)
    assert not same(own, together)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_each_has_the_k_of_its_submodule(kind):
    source, settings = sparse_mixtures(1024), dataclasses.replace(SMALL_BUFFER, kind=kind)
    trained = train_dictionaries(source, settings, ks={"resid_0": 2})
    assert {name: one.wanted_l0 for name, one in trained.items()} == {"embed": 3, "resid_0": 2}
    of_two = train_dictionaries(source, dataclasses.replace(settings, k=2))
    of_three = train_dictionaries(source, settings)
    assert same(trained, {"embed": of_three["embed"], "resid_0": of_two["resid_0"]})
    assert not same(trained, of_three)


@pytest.mark.parametrize(
    ("ks", "told"),
    [
        ({"atn_0": 2}, "ks names 'atn_0', where no dictionary is trained"),
        ({"resid_0": 17}, "'resid_0': k is 17 but there are only 16 features"),
    ],
)
def test_a_k_of_nothing_and_one_too_large_are_refused(ks, told):
    with pytest.raises(InputError, match=told):
        train_dictionaries(sparse_mixtures(1024), dataclasses.replace(SHORT, kind="topk"), ks=ks)


def test_what_kinds_make_no_use_of_is_what_they_say():
    for kind in DICTIONARY_KINDS:
        made = kind_named(kind)(dataclasses.replace(SHORT, kind=kind))
        assert (kind in WITHOUT_K) is (made.wanted_l0 is None)
        assert (kind in CHOOSE_K) is (made.wanted_l0 is not None)
        assert (kind in NEVER_RESAMPLE) is not made.resamples


def test_widths_that_lack_what_is_trained_are_refused():
    with pytest.raises(InputError, match=r"'resid_0' has width 8 but all_widths says None"):
        train_dictionaries(sparse_mixtures(1024), SHORT, all_widths={"embed": 8})


def test_what_one_call_finished_another_call_with_other_company_reads(tmp_path):
    source = sparse_mixtures(1024)
    together = train_dictionaries(source, SMALL_BUFFER, checkpoint=tmp_path)
    rest = only(source, ["resid_0"])
    found = train_dictionaries(rest, SMALL_BUFFER, all_widths=source.widths, checkpoint=tmp_path)
    assert rest.n_loaded == 0
    assert same(found, together)


def test_a_kill_between_the_files_of_one_checkpoint_loses_nothing(tmp_path, monkeypatch):
    source, write = sparse_mixtures(1024), loop.write_checkpoint
    expected = train_dictionaries(source, SMALL_BUFFER)

    def killed_before_the_second(folder, key, step, learner):
        if (step, learner.name) == (10, "resid_0"):
            raise Killed
        write(folder, key, step, learner)

    monkeypatch.setattr(loop, "write_checkpoint", killed_before_the_second)
    with pytest.raises(Killed):
        train_dictionaries(source, SMALL_BUFFER, checkpoint=tmp_path)
    monkeypatch.setattr(loop, "write_checkpoint", write)
    steps = []
    resumed = train_dictionaries(
        source,
        SMALL_BUFFER,
        checkpoint=tmp_path,
        on_step=lambda step, reports: steps.append((step, *reports)),
    )
    assert steps[4:6] == [(9, "resid_0"), (10, "embed", "resid_0")]
    assert same(resumed, expected)


def test_weights_do_not_depend_on_the_number_of_cores():
    source, n_threads = sparse_mixtures(1024), torch.get_num_threads()
    one = train_dictionaries(source, SHORT)
    try:
        torch.set_num_threads(2)
        two = train_dictionaries(source, SHORT)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(n_threads)
    assert same(one, two)


def test_a_finished_training_is_read_and_nothing_else_is_done(tmp_path):
    source = sparse_mixtures(1024)
    expected = train_dictionaries(source, SHORT, checkpoint=tmp_path)
    source.n_loaded = 0
    assert same(train_dictionaries(source, SHORT, checkpoint=tmp_path), expected)
    assert source.n_loaded == 0


@pytest.mark.parametrize("change", [{"learning_rate": 3e-3}, {"seed": 1}, {"n_steps": 30}])
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, change):
    source = sparse_mixtures(1024)
    train_dictionaries(source, SHORT, checkpoint=tmp_path)
    with pytest.raises(InputError, match="other settings or other data"):
        train_dictionaries(source, dataclasses.replace(SHORT, **change), checkpoint=tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    source = sparse_mixtures(1024)
    train_dictionaries(source, SHORT, checkpoint=tmp_path)
    file = checkpoint_file(tmp_path, "resid_0")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(Exception, match="is no checkpoint"):
        train_dictionaries(source, SHORT, checkpoint=tmp_path)


def test_a_loss_that_is_not_finite_names_step_submodule_and_checkpoint(tmp_path):
    source = sparse_mixtures(1024)
    source.values["resid_0"][:] = float("nan")
    with pytest.raises(NotFinite, match=r"'resid_0' is nan at step 0; there is no checkpoint"):
        train_dictionaries(source, SHORT, checkpoint=tmp_path)
    source = sparse_mixtures(1024)

    def spoil(step, reports):
        if step == 11:
            source.values["embed"][:] = float("inf")

    # A buffer of two batches is refilled soon enough to meet what was spoilt.
    small = dataclasses.replace(SHORT, buffer_bytes=2 * 64 * (2 * 16 + 8))
    with pytest.raises(NotFinite, match=r"'embed' is .* last good checkpoint is step 10"):
        train_dictionaries(source, small, checkpoint=tmp_path / "other", on_step=spoil)


def test_each_step_and_some_progress_are_reported():
    steps, lines = [], []
    train_dictionaries(
        sparse_mixtures(1024),
        SHORT,
        on_step=lambda step, reports: steps.append((step, *reports)),
        progress=lines.append,
    )
    assert steps == [(step, "embed", "resid_0") for step in range(24)]
    assert lines[-1].startswith("training: step 24 of 24; mean loss ")


@pytest.mark.parametrize("n_steps", [24, 120])
def test_the_curve_holds_reports_of_steps_spread_over_the_training(n_steps):
    reports = {}
    trained = train_dictionaries(
        sparse_mixtures(1024),
        dataclasses.replace(SHORT, n_steps=n_steps),
        on_step=lambda step, told: reports.update({step + 1: told["embed"]}),
    )
    curve = trained["embed"].curve
    assert len(curve) == min(n_steps, 50)
    assert curve[-1][0] == n_steps
    n_features = trained["embed"].dictionary.n_features
    for step, *told in curve:
        report = reports[step]
        assert told == [report.loss, report.l0, report.n_dead / n_features]


def test_the_learning_rate_rises_after_the_start_and_each_resampling_and_falls_at_the_end():
    rate = SHORT.learning_rate_at
    full = SHORT.learning_rate
    assert [rate(step) / full for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert [rate(step) / full for step in (7, 8, 9, 12)] == pytest.approx([1, 0.25, 0.5, 1])
    assert [rate(step) / full for step in (20, 21, 22, 23)] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert [step for step in range(24) if SHORT.resamples_at(step)] == [8]


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
def test_a_kind_that_does_not_resample_keeps_its_learning_rate(kind):
    settings = dataclasses.replace(SHORT, kind=kind)
    resamples = kind in ("relu", "gated")
    assert [step for step in range(24) if settings.resamples_at(step)] == [8] * resamples
    assert (settings.learning_rate_at(8) < settings.learning_rate) is resamples


def test_the_defaults_are_the_papers():
    paper = TrainingSettings(
        kind="relu",
        n_features=64 * 512,
        n_steps=120_000,
        batch_size=2**14,
        learning_rate=1e-4,
        sparsity=0.1,
        warmup_steps=1_000,
        decay_steps=0,
        sparsity_warmup_steps=0,
        resample_every=25_000,
        dead_after=12_500,
    )
    assert TrainingSettings() == paper


@pytest.mark.parametrize(
    "bad", [{"kind": "magic"}, {"n_steps": 0}, {"kind": "topk", "k": 17}, {"learning_rate": -1.0}]
)
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(InputError):
        dataclasses.replace(SHORT, **bad)


def test_data_smaller_than_two_batches_is_refused():
    with pytest.raises(InputError, match="fewer than two batches"):
        train_dictionaries(numbered([50]), SHORT)


def test_weights_that_a_step_spoils_are_never_saved(tmp_path, monkeypatch):
    own = Learner._adam

    def spoil(learner, step):
        own(learner, step)
        if step == 4:
            learner.weights.encoder[0, 0] = float("inf")

    monkeypatch.setattr(Learner, "_adam", spoil)
    every = dataclasses.replace(SHORT, checkpoint_every=1)
    with pytest.raises(NotFinite, match="at step 4; the last good checkpoint is step 4"):
        train_dictionaries(sparse_mixtures(1024), every, checkpoint=tmp_path)
