"""The mixture of the losses against expectation-maximisation by the book and scikit-learn's."""

from __future__ import annotations

import warnings

import numpy as np
import oracle
import pytest
import torch

from coreg_ray.pure import purify

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def mixture(rows, low, high, share, seed=0):
    rng = np.random.default_rng(seed)
    losses = np.where(rng.random(rows) < share, rng.normal(*low, rows), rng.normal(*high, rows))
    return torch.from_numpy((losses - losses.min()) / (losses.max() - losses.min()))


MIXTURES = {
    "separated": ((0.1, 0.05), (0.8, 0.1), 0.7),
    "overlapping": ((0.2, 0.12), (0.5, 0.2), 0.6),
    "narrow and wide": ((0.05, 0.03), (0.5, 0.25), 0.9),
    "few clean": ((0.1, 0.02), (0.7, 0.1), 0.05),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", MIXTURES.values(), ids=MIXTURES)
def test_clean_probability_agrees_with_the_oracle(device, shape):
    losses = mixture(300, *shape)
    got = purify.clean_probability(losses.to(device)).cpu()
    torch.testing.assert_close(got.numpy(), oracle.clean_probability(losses), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", MIXTURES.values(), ids=MIXTURES)
def test_clean_set_agrees_with_sklearn(shape):
    gaussian_mixture = pytest.importorskip("sklearn.mixture").GaussianMixture
    losses = mixture(3000, *shape, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten iterations need not converge
        model = gaussian_mixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(losses[:, None])
    theirs = model.predict_proba(losses[:, None])[:, model.means_.argmin()]
    ours = purify.clean_probability(losses).numpy()
    assert ((ours > 0.5) != (theirs > 0.5)).sum() <= 10
    assert np.abs(ours - theirs).max() < 0.02  # their start is a k-means that stops a little early


def test_clean_probability_does_not_feel_the_order_of_the_rows_or_the_seed():
    losses = mixture(2001, *MIXTURES["overlapping"]).float()
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(0))
    whole = purify.clean_probability(losses)
    torch.testing.assert_close(purify.clean_probability(losses[order], seed=7), whole[order], rtol=0, atol=1e-7)


def test_clean_probability_finds_who_is_who():
    clean = torch.arange(1000) < 700
    noise = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 0.2
    posterior = purify.clean_probability(torch.where(clean, noise, 0.8 + noise))
    assert torch.equal(posterior > 0.5, clean)
    assert (posterior[clean] > 0.99).all()
    assert (posterior[~clean] < 0.01).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 2, 100])
def test_equal_losses_are_all_clean(dtype, rows):
    posterior = purify.clean_probability(torch.full((rows,), 0.3, dtype=dtype))
    assert posterior.shape == (rows,)
    assert (posterior == 1).all()
    assert posterior.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize(
    "losses", [[0.0, 1.0], [0.5, 0.5001], [0.0, 0.0, 1.0], [0.0] * 999 + [18.42], [-1e30, 0.0, 1e30]]
)
def test_few_or_extreme_losses_stay_finite(losses):
    posterior = purify.clean_probability(torch.tensor(losses))
    assert torch.isfinite(posterior).all()
    assert (posterior >= 0).all()
    assert (posterior <= 1).all()
    if losses[-1] - losses[0] >= 1:
        assert posterior[0] > 0.5 > posterior[-1]


def test_clean_is_the_lower_mean_however_the_components_come(monkeypatch):
    losses = mixture(500, *MIXTURES["overlapping"])
    expected, fit = purify.clean_probability(losses), purify._fit_two_gaussians
    monkeypatch.setattr(purify, "_fit_two_gaussians", lambda ordered: tuple(p.flip(0) for p in fit(ordered)))
    torch.testing.assert_close(purify.clean_probability(losses), expected)
