# mypy: ignore-errors
"""Record what choix 0.4.1 and statsmodels 0.15.0 say of rankings and ordinal ratings: rankings.json.

    python -m venv peers && peers/bin/pip install choix==0.4.1 statsmodels==0.15.0
    peers/bin/python tests/goldens/record_rankings.py

Plackett-Luce: choix's negative log-likelihood of rankings of 2 to 5 of 6 items, and its gradient and its maximum
(with an L2 penalty of 0.5). Ordinal: statsmodels' OrderedModel (logit) at given coefficients and cut-points, per
observation, and its maximum.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import choix
import numpy as np
from choix.opt import Top1Fcts
from scipy.optimize import approx_fprime
from statsmodels.miscmodels.ordinal_model import OrderedModel

RANKINGS = [(0, 3, 1), (5, 2), (4, 0, 2, 1, 5), (1, 0), (3, 5, 4, 2), (2, 4, 0, 3, 1), (5, 1, 3)]


def main() -> None:
    draw = np.random.default_rng(3)
    scores = draw.normal(size=6).round(3)
    choices = [(ranking[k], ranking[k + 1 :]) for ranking in RANKINGS for k in range(len(ranking) - 1)]
    objective = Top1Fcts(choices, penalty=0.0)
    best = choix.opt_rankings(6, RANKINGS, alpha=0.5, method="Newton-CG", tol=1e-12)
    plackett_luce = {
        "rankings": RANKINGS,
        "scores": scores.tolist(),
        "loss": -choix.log_likelihood_rankings(RANKINGS, scores),
        "gradient": objective.gradient(scores).tolist(),
        "best_with_penalty": best.tolist(),
    }

    features = draw.normal(size=(40, 2)).round(3)
    levels = np.digitize(features @ [1.0, -0.7] + draw.logistic(size=40), [-1.0, 0.2, 1.5])
    model = OrderedModel(levels, features, distr="logit")
    coefficients, cuts = np.array([0.8, -0.3]), np.array([-1.1, 0.3, 1.4])
    parameters = np.concatenate([coefficients, [cuts[0]], np.log(np.diff(cuts))])
    fitted = model.fit(method="bfgs", gtol=1e-10, maxiter=1000, disp=False)
    thresholds = model.transform_threshold_params(fitted.params)[1:-1]
    ordinal = {
        "features": features.tolist(),
        "levels": levels.tolist(),
        "coefficients": coefficients.tolist(),
        "cuts": cuts.tolist(),
        "log_likelihood": model.loglikeobs(parameters).tolist(),
        "best_coefficients": fitted.params[:2].tolist(),
        "best_cuts": thresholds.tolist(),
        "best_log_likelihood": float(fitted.llf),
    }
    assert np.allclose(approx_fprime(fitted.params, model.loglike, 1e-6), 0, atol=1e-3)
    record = {
        "versions": {name: version(name) for name in ("choix", "statsmodels")},
        "plackett_luce": plackett_luce,
        "ordinal": ordinal,
    }
    Path(__file__).with_name("rankings.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
