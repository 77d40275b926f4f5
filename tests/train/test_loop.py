"""The training loop: torch's losses step by step, early stopping, divergence, and being asked to stop."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

import lensjax.models
from lensjax.tasks.batches import BatchPlan, example_lengths, fits, training_batches
from lensjax.tasks.packing import PackedShape
from lensjax.train.checkpoint import Checkpoints
from lensjax.train.evaluate import evaluate
from lensjax.train.loop import Diverged, Stopped, planned_steps
from lensjax.train.optimiser import learning_rate
from lensjax.train.step import State

STEPS = 50


@pytest.fixture(scope="module")
def trial(make_trial):
    return make_trial("llama", schedule="constant", warmup=0.0, evaluate_every=5)


@pytest.fixture
def torch():
    """torch on one thread, as many of them on busy cores take ten times as long."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


def torch_losses(torch, folder, trial, steps):
    """Loss and norm of the gradient before every step of a plain loop in torch."""
    import transformers

    kind = lensjax.models.family_of(transformers.AutoConfig.from_pretrained(folder).model_type).architecture
    model = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager").eval()
    run, spec = trial.run, trial.spec
    norms = {id(p) for module in model.modules() if "Norm" in type(module).__name__ for p in module.parameters()}
    decayed = [p for name, p in model.named_parameters() if id(p) not in norms and not name.endswith(".bias")]
    others = [p for name, p in model.named_parameters() if id(p) in norms or name.endswith(".bias")]
    groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(spec.beta1, spec.beta2), eps=spec.epsilon)
    plan = BatchPlan(fits(example_lengths(run.train, run.encoder_decoder), run.lengths[0]), spec.batch_size, run.seed)
    batches = training_batches(run.train, plan, run.lengths, range(spec.batch_size), run.padding, range(steps))
    found = []
    for step, (_, batch) in enumerate(batches):
        inputs = {name: torch.from_numpy(rows.astype(np.int64)) for name, rows in batch.items()}
        labels = inputs.pop("labels")
        if run.encoder_decoder:
            told = torch.where(labels == -100, model.config.pad_token_id, labels)[:, :-1]
            start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
            logits = model(**inputs, decoder_input_ids=torch.cat([start, told], dim=1)).logits
        else:
            logits, labels = model(**inputs).logits[:, :-1], labels[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spec, run.rate, step, steps)
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
        optimiser.step()
        found.append((loss.item(), norm.item()))
    return found


@pytest.mark.parametrize(("model_type", "shapes", "clip"), [("gpt2", 2, 1.42), ("t5", 1, 0.8)])
def test_losses_are_torchs_at_every_step(torch, make_trial, observer, tmp_path, model_type, shapes, clip):
    settings = {"max_steps": STEPS, "epochs": STEPS, "evaluate_every": STEPS, "weight_decay": 0.1, "clip": clip}
    trial = make_trial(model_type, 56, shapes=shapes, **settings)  # the last batch of an epoch has empty rows
    # At three times this rate, rounding grows to 1e-4 within 50 steps.
    trial.run = replace(trial.run, rate=1e-3)
    trial.model.save(tmp_path / "model")
    expected = torch_losses(torch, tmp_path / "model", trial, STEPS)
    seen = observer()
    trial.fine_tune(tmp_path / "checkpoints", seen)
    losses = [metrics["loss"] for _, metrics in seen.steps]
    np.testing.assert_allclose(losses, [loss for loss, _ in expected], rtol=0, atol=1e-4)
    assert losses[-1] < losses[0] - 1
    norms = [metrics["gradient_norm"] for _, metrics in seen.steps]
    np.testing.assert_allclose(norms, [norm for _, norm in expected], rtol=1e-3)
    clipped = sum(norm > trial.spec.clip for norm in norms)
    assert 0 < clipped < STEPS  # else clipping, or its absence, would not be tested


def test_training_stops_once_patience_is_spent_and_gives_back_the_best(trial, observer, tmp_path):
    seen = observer()
    # So few examples are soon known by heart, after which the loss on others rises.
    few = replace(trial.run, train=trial.run.train.take(16), rate=1e-2)
    best, progress = trial.fine_tune(tmp_path, seen, few, epochs=1000, patience=2)
    lowest = min(range(len(seen.validations)), key=lambda i: seen.validations[i][1])
    assert len(seen.validations) == lowest + 1 + 2
    assert progress.step == seen.validations[-1][0] == seen.steps[-1][0] < 1000
    assert (progress.best_step, progress.best_loss) == seen.validations[lowest]
    assert progress.stale == 2
    again = evaluate(trial.programs, best, {}, few.validation, few.evaluation_length, trial.placements[1], few.padding)
    assert again.loss == progress.best_loss


def test_epochs_and_max_steps_end_training(trial, observer, tmp_path):
    assert planned_steps(trial.spec.model_copy(update={"epochs": 7}), 3) == (21, 5)
    assert planned_steps(trial.spec.model_copy(update={"max_steps": 8, "evaluate_every": None}), 1000) == (8, 500)
    least = {"epochs": 7, "min_steps": 640, "evaluate_every": None}
    assert planned_steps(trial.spec.model_copy(update=least), 3) == (640, 20)  # validated 32 times
    assert planned_steps(trial.spec.model_copy(update=least), 100) == (700, 100)
    seen = observer()
    _, progress = trial.fine_tune(tmp_path, seen, max_steps=7)
    assert [step for step, _ in seen.steps] == list(range(1, 8))
    assert [step for step, _ in seen.validations] == [5, 7]  # the last step is always validated
    lengths = example_lengths(trial.run.train, False)[:, 0]
    plan = BatchPlan(fits(lengths[:, None], trial.run.lengths[0]), trial.spec.batch_size, trial.run.seed)
    assert progress.tokens == sum(lengths[plan[step][1]].sum() for step in range(7))
    assert 0 <= progress.waiting <= progress.seconds


def test_packed_training_is_that_of_rows_of_their_own_and_goes_on_to_the_same_bits(trial, observer, tmp_path):
    plain, whole, broken = observer(), observer(), observer(stop_at=2)
    packed = replace(trial.run, packing=(PackedShape(11, trial.run.lengths[1][0]), None))
    trial.fine_tune(tmp_path / "plain", plain, max_steps=6)
    best, progress = trial.fine_tune(tmp_path / "whole", whole, packed, max_steps=6)
    for (_, found), (_, expected) in zip(whole.steps, plain.steps, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert dict(whole.validations) == pytest.approx(dict(plain.validations), rel=1e-5)
    with pytest.raises(Stopped):
        trial.fine_tune(tmp_path / "broken", broken, packed, max_steps=6)
    other = replace(packed, packing=(PackedShape(12, trial.run.lengths[1][0]), None))  # of a command with other rungs
    again, resumed = trial.fine_tune(tmp_path / "broken", broken, other, max_steps=6)
    assert replace(resumed, seconds=0, waiting=0) == replace(progress, seconds=0, waiting=0)
    jax.tree.map(np.testing.assert_array_equal, again, best)


def finite(tree):
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


def restored(trial, folder):
    """Step, state and best parameters of the checkpoint in a folder."""
    checkpoints = Checkpoints(folder)
    step, _ = checkpoints.record()
    state = trial.programs.start(trial.start())
    state, best = checkpoints.restore(step, state, state.params)
    checkpoints.close()
    return step, state, best


def test_an_absurd_learning_rate_diverges_and_leaves_a_finite_checkpoint(trial, observer, tmp_path):
    with pytest.raises(Diverged, match=r"the (loss|gradient's norm|validation loss) is (nan|inf)") as caught:
        trial.fine_tune(tmp_path, observer(), replace(trial.run, rate=1e30), checkpoint_every=1, patience=1000)
    assert caught.value.progress.step < 20
    step, state, best = restored(trial, tmp_path)
    assert step < caught.value.progress.step
    assert finite(best)
    assert finite(state)


def test_poisoned_weights_stop_training_and_leave_the_checkpoint_from_before(trial, observer, tmp_path):
    real = trial.programs

    def step(state, frozen, batch, rate):
        state, metrics = real.step(state, frozen, batch, rate)
        if len(told) == 12:
            state = State(jax.tree.map(lambda leaf: leaf * math.nan, state.params), state.optimiser)
        told.append(float(metrics.loss))
        return state, metrics

    told = []
    trial.programs = replace(real, step=step)
    try:
        with pytest.raises(Diverged, match="the loss is nan at step 14") as caught:
            trial.fine_tune(tmp_path, observer(), checkpoint_every=6)
    finally:
        trial.programs = real
    assert caught.value.progress.step == 14
    step, state, best = restored(trial, tmp_path)
    assert step == 12
    assert finite(best)
    assert finite(state)


def test_asked_to_stop_it_saves_the_step_it_reached(trial, observer, tmp_path):
    seen = observer(stop_at=3)
    with pytest.raises(Stopped):
        trial.fine_tune(tmp_path, seen)
    # It hears of step 3 while step 4 is under way.
    assert restored(trial, tmp_path)[0] == seen.steps[-1][0] == 4
    assert seen.validations == []
