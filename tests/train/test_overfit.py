"""Every kind of block can be trained: a few real examples are learnt by heart."""

import numpy as np

from lensjax.tasks.batches import collate

EXAMPLES = 32
# Windows that hold the prompt, and logits that can make one token all but certain.
RATES = {"bart": 3e-3}  # takes ten times as many steps at the rate of the others
ABLE = {family: {"sliding_window": 24, "final_logit_softcapping": 30.0} for family in ("gemma2", "gemma4_text")}


def test_a_few_examples_are_learnt_by_heart(make_trial, distinct_type):
    trial = make_trial(distinct_type, EXAMPLES, below=100, changes=ABLE.get(distinct_type), batch_size=EXAMPLES)
    run, rows = trial.run, range(EXAMPLES)
    batch = trial.placements[0].to_devices(collate(run.train, rows, rows, run.lengths[1], run.padding))
    state = trial.programs.start(trial.start())
    losses, rate = [], RATES.get(distinct_type, 1e-2)
    for step in range(800):
        state, metrics = trial.programs.step(state, {}, batch, rate * min(1, (step + 1) / 10))
        losses.append(float(metrics.loss))
        if losses[-1] < 0.05:
            break
    assert losses[0] > np.log(100)  # nats per token: it knew nothing
    assert losses[-1] < 0.05
