//! The metrics of a process, in the Prometheus text format. Names are stable once shipped.

use std::sync::OnceLock;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Seconds. From a Redis round trip to a slow pack.
const BUCKETS_SECS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0];

/// Begins to collect. A second call changes nothing.
pub fn init() {
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new().set_buckets(&BUCKETS_SECS).ok()?;
        let handle = builder.install_recorder().ok()?;
        describe();
        // These raise alerts when they rise, and a counter that appears at 1 has not risen.
        for name in ["dpp_audit_required_total", "dpp_budget_rebuilds_total", "dpp_messages_buried_total"] {
            metrics::counter!(name).increment(0);
        }
        Some(handle)
    });
}

/// All metrics as text.
pub fn render() -> String {
    HANDLE
        .get()
        .and_then(Option::as_ref)
        .map(|handle| {
            // Histograms gather until someone asks.
            handle.run_upkeep();
            handle.render()
        })
        .unwrap_or_default()
}

fn describe() {
    describe_counter!("dpp_http_requests_total", "Requests answered, by route and status.");
    describe_histogram!("dpp_http_seconds", Unit::Seconds, "Time to answer a request, by route.");
    describe_histogram!("dpp_store_seconds", Unit::Seconds, "Time of database statements, by name.");
    describe_counter!("dpp_store_errors_total", "Failed database statements, by name.");
    describe_counter!("dpp_submits_total", "Submits, by outcome.");
    describe_counter!("dpp_runs_ended_total", "Runs ended by this process, by status and pack.");
    describe_counter!("dpp_charged_usd_micros_total", "Micros charged by this process, by pack.");
    describe_histogram!("dpp_run_seconds", Unit::Seconds, "Time of a pack's work, by pack.");
    describe_gauge!("dpp_worker_slots_busy", "Runs in work now.");
    describe_counter!("dpp_leases_lost_total", "Leases that a worker found gone.");
    describe_counter!("dpp_messages_buried_total", "Messages that were not ours.");
    describe_counter!("dpp_reaper_rows_total", "Rows the reaper met, by pass and what became of them.");
    describe_histogram!("dpp_reaper_pass_seconds", Unit::Seconds, "Time of a pass, by pass.");
    describe_counter!("dpp_budget_rebuilds_total", "Budgets rebuilt from the ledger.");
    describe_gauge!("dpp_waits", "Requests that wait for a run to end.");
    describe_counter!(
        "dpp_waits_woken_total",
        "Runs whose end woke somebody, by how it was heard of: hint or look."
    );
    describe_counter!("dpp_audit_required_total", "Runs parked for a person.");
}
