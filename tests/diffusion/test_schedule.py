"""The noise schedule against known values, respacing, and the forward process."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.diffusion.ddpm import DdpmHybrid
from harness.diffusion.schedule import Schedule
from harness.errors import InputError
from harness.spec.diffusion import LOSS_BINS, OBJECTIVES, Diffusion, ObjectiveFacts, respaced_steps

PAPER = Schedule.of(Diffusion())


def test_the_papers_schedule() -> None:
    assert len(PAPER) == 1000
    assert PAPER.betas[[0, -1]] == pytest.approx([1e-4, 2e-2])
    assert np.diff(PAPER.betas) == pytest.approx((2e-2 - 1e-4) / 999)
    assert PAPER.alphas_bar[-1] == pytest.approx(4.0358e-5, rel=1e-4)  # the well-known 0.00635 squared
    assert PAPER.alphas_bar_previous[0] == 1
    assert PAPER.posterior_variance[0] == 0
    assert PAPER.log_variance_low[0] == np.log(PAPER.posterior_variance[1])
    assert PAPER.log_variance_low[1:] == pytest.approx(np.log(PAPER.posterior_variance[1:]))
    assert PAPER.log_variance_high == pytest.approx(np.log(PAPER.betas))
    assert all(
        getattr(PAPER, name).dtype == np.float64
        for name in ("betas", "alphas_bar", "alphas_bar_previous", "posterior_mean_x0", "posterior_variance")
    )


def test_the_posterior_is_bayes_rule() -> None:
    """q(x_{t-1} | x_t, x_0) by completing the square of q(x_t | x_{t-1}) q(x_{t-1} | x_0)."""
    for t in (1, 2, 17, 500, 999):
        alpha, prior = 1 - PAPER.betas[t], PAPER.alphas_bar[t - 1]
        precision = alpha / PAPER.betas[t] + 1 / (1 - prior)
        assert PAPER.posterior_variance[t] == pytest.approx(1 / precision)
        assert PAPER.posterior_mean_xt[t] == pytest.approx(np.sqrt(alpha) / PAPER.betas[t] / precision)
        assert PAPER.posterior_mean_x0[t] == pytest.approx(np.sqrt(prior) / (1 - prior) / precision)


def test_respacing_the_papers_schedule() -> None:
    kept = PAPER.respaced(250).timesteps
    assert kept[:21].tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 80]
    assert kept[82:85].tolist() == [329, 333, 337]
    assert kept[-4:].tolist() == [987, 991, 995, 999]


@pytest.mark.parametrize(
    ("steps", "kept"),
    [(1, [9]), (2, [0, 9]), (3, [0, 4, 9]), (4, [0, 3, 6, 9]), (5, [0, 2, 4, 7, 9]), (10, list(range(10)))],
)
def test_respacing_ten_steps(steps: int, kept: list[int]) -> None:
    assert Schedule.of(Diffusion(timesteps=10)).respaced(steps).timesteps.tolist() == kept


def test_respacing_adds_the_stride_up_as_the_published_code_does() -> None:
    """27 steps take 499 in the middle, not 500: the sum of strides is a rounding error below 499.5."""
    assert PAPER.respaced(27).timesteps[12:15].tolist() == [461, 499, 538]
    differ = 0
    for steps in range(2, 1001):
        kept, at, stride = [], 0.0, 999 / (steps - 1)
        for _ in range(steps):
            kept.append(round(at))
            at += stride
        assert respaced_steps(1000, steps) == kept
        assert (len(set(kept)), kept[-1]) == (steps, 999)
        differ += kept != [round(i * 999 / (steps - 1)) for i in range(steps)]
    assert differ == 283
    common = (4, 10, 20, 25, 50, 100, 250, 1000)
    assert all(respaced_steps(1000, n) == [round(i * 999 / (n - 1)) for i in range(n)] for n in common)


@given(timesteps=st.integers(2, 1000), data=st.data())
def test_respacing_keeps_the_noise_levels(timesteps: int, data: st.DataObject) -> None:
    schedule = Schedule.of(Diffusion(timesteps=timesteps))
    steps = data.draw(st.integers(1, timesteps))
    respaced = schedule.respaced(steps)
    assert len(respaced) == len(set(respaced.timesteps.tolist())) == steps
    assert respaced.timesteps[-1] == timesteps - 1
    assert (np.diff(respaced.timesteps) > 0).all()
    np.testing.assert_allclose(respaced.alphas_bar, schedule.alphas_bar[respaced.timesteps], rtol=1e-9)
    assert ((respaced.betas > 0) & (respaced.betas < 1)).all()
    assert np.isfinite(respaced.log_variance_low).all()


def test_all_steps_are_the_schedule_itself() -> None:
    np.testing.assert_allclose(PAPER.respaced(1000).betas, PAPER.betas, rtol=1e-10)


def test_a_respaced_schedule_can_be_respaced() -> None:
    twice = PAPER.respaced(250).respaced(2)
    assert twice.timesteps.tolist() == [0, 999]
    np.testing.assert_allclose(twice.alphas_bar, PAPER.alphas_bar[[0, 999]], rtol=1e-9)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_too_many_or_no_steps_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match=rf"{steps}: must be in 1\.\.1000"):
        PAPER.respaced(steps)


def test_q_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(3, 2, 4, 4, generator=generator)
    noise = torch.randn(3, 2, 4, 4, generator=generator)
    t = torch.tensor([0, 400, 999])
    xt = PAPER.q_sample(x0, t, noise)
    assert xt.dtype == torch.float32
    for n, step in enumerate(t.tolist()):
        share = float(np.prod(1 - PAPER.betas[: step + 1]))
        torch.testing.assert_close(xt[n], x0[n] * share**0.5 + noise[n] * (1 - share) ** 0.5)


# what a spec refuses before the start, and what it lets run


def outcome(diffusion: Diffusion, sampler: str, steps: int) -> str:
    """Where a training step, the measured loss or the sampler fails, or "ok"; the network predicts at random."""
    objective, generator = DdpmHybrid(diffusion), torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4, 1, 2, 2, generator=generator) for _ in range(2))
    t = torch.tensor([0, 1, len(objective.schedule) // 2, len(objective.schedule) - 1])
    output = torch.randn(4, 2, 2, 2, generator=generator)
    if not torch.isfinite(objective.loss(output, x0, objective.noised(x0, t, noise), t, noise)).all():
        return "loss"
    try:
        for i in range(LOSS_BINS):
            objective.draw(np.random.default_rng(0), 4, i / LOSS_BINS, (i + 1) / LOSS_BINS)
    except ValueError:
        return "bins"
    x = objective.sample(sampler, lambda x, t: torch.cat((x, torch.sin(x)), 1) * 0.9, noise, steps, lambda _: noise)
    return "ok" if torch.isfinite(x).all() else "samples"


def _check(diffusion: Diffusion, sampler: str, steps: int) -> None:
    diffusion.check_training()
    diffusion.check_sampling(sampler, steps)


@pytest.mark.parametrize(
    ("changes", "steps", "key", "fails"),
    [
        *(({"timesteps": T}, 2, f"diffusion.timesteps {T}", "bins") for T in range(2, 8)),
        ({"timesteps": 20_000}, 20, "diffusion.timesteps 20000", "samples"),
        ({"timesteps": 100_000}, 20, "diffusion.timesteps 100000", "loss"),
        ({"beta_end": 0.99}, 50, "diffusion.timesteps 1000 with betas", "loss"),
        ({"beta_start": 1e-17}, 50, "diffusion.beta_start 1e-17", "loss"),
        ({"beta_start": 1e-17, "beta_end": 1e-17, "timesteps": 10}, 5, "diffusion.beta_start 1e-17", "loss"),
        ({"timesteps": 4000}, 1, "sampling_steps: 1 are too few", "samples"),
        ({"timesteps": 4000}, 2, "sampling_steps: 2 are too few", "samples"),
        ({"timesteps": 10_000}, 4, "sampling_steps: 4 are too few", "samples"),
        ({"beta_end": 0.1}, 2, "sampling_steps: 2 are too few", "samples"),
    ],
)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])  # clipping hides what is not finite
def test_what_must_fail_is_refused(changes: dict[str, Any], steps: int, key: str, fails: str, sampler: str) -> None:
    diffusion = Diffusion(**changes)
    with np.errstate(all="ignore"):
        assert outcome(diffusion, sampler, steps) == fails
    with pytest.raises(ValueError, match=rf"^{re.escape(key)}.* allowed: "):
        _check(diffusion, sampler, steps)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "ddim-clip"])
@pytest.mark.parametrize("timesteps", [8, 9, 12, 17, 1000, 4000])
@pytest.mark.parametrize("betas", [(1e-4, 2e-2), (0.5, 0.5), (1e-12, 1e-6), (0.9, 1e-3), (1e-6, 0.999)])
def test_what_is_let_through_does_not_fail(sampler: str, timesteps: int, betas: tuple[float, float]) -> None:
    diffusion = Diffusion(timesteps=timesteps, beta_start=betas[0], beta_end=betas[1])
    for steps in (1, 2, 3, 5, 8):
        try:
            _check(diffusion, sampler, steps)
        except ValueError:
            continue
        assert outcome(diffusion, sampler, steps) == "ok"


def test_continuous_time_needs_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES.built_in, "straight", ObjectiveFacts("", ("euler",)))
    diffusion = Diffusion(objective="straight", timesteps=4, beta_end=0.999)
    diffusion.check_training()
    diffusion.check_sampling("euler", 2000)
