"""The judge of the staleness campaign sees what vectors say, not what the index says of itself."""

from __future__ import annotations

from benchmarks.staleness_campaign import CampaignConfig, run_campaign
from training.index.refresher import Refresher
from training.index.schedule import RefreshConfig

SMALL = CampaignConfig(
    num_steps=70,
    step_s=0.0,
    refresh=RefreshConfig("async", interval_steps=20, delay_steps=10),
    num_rows=60,
    block_rows=20,
    num_encoders=2,
    slow_share=0.3,
    slow_s=0.02,
    death_share=0.2,
)


def test_slow_and_failing_encoders_break_no_bound(tmp_path):
    result = run_campaign(tmp_path, SMALL)
    assert (result.violations, result.off_plan) == (0, 0)
    assert (result.steps, result.refreshes) == (70, 2)
    assert result.max_staleness == result.bound == 29


def test_judge_counts_searches_of_an_index_that_is_too_old(tmp_path, monkeypatch):
    def prepare_once(self, step, save_weights, probe_encoder=None):
        return real(self, min(step, 9), save_weights, probe_encoder)

    def search_first(self, queries_QD, k, step):
        return self._search(0, 0, queries_QD, k)

    real = Refresher.before_step
    monkeypatch.setattr(Refresher, "before_step", prepare_once)
    monkeypatch.setattr(Refresher, "search", search_first)
    result = run_campaign(tmp_path, SMALL)
    assert result.violations == 70 - 30
    assert result.off_plan == 70 - 30
