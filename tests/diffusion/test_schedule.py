"""The noise schedule against known values, respacing, and the forward process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.diffusion.schedule import Schedule
from harness.errors import InputError
from harness.spec.diffusion import Diffusion

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
