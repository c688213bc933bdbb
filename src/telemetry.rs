//! Tracing and metrics set-up.
//!
//! Logs go to standard error: JSON lines for machines, text on a terminal. Metrics live in one registry that every part may add to;
//! `/metrics` encodes it as OpenMetrics text. Nothing here decides what is worth logging or counting.

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// Starts logging to standard error. `filter` is a tracing filter such as `info` or `mosaic=debug`; without a format, a terminal gets text and all
/// else JSON. A second call changes nothing.
/// # Errors
/// The filter is no filter.
pub fn start_logging(format: Option<LogFormat>, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|e| format!("log: {filter:?} is no filter such as `info` or `mosaic=debug`: {e}"))?;
    let is_terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A subscriber that is there already stays: tests and the demo start more than one controller in one process.
    let _ = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => {
            builder.with_ansi(is_terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())).with_target(false).try_init()
        }
    };
    Ok(())
}

/// Labels of one HTTP route's counters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Method, or OTHER.
    pub method: String,
    /// The route's pattern, never the path itself: names must not become labels.
    pub route: String,
    /// Status code.
    pub status: u16,
}

/// Label of the gauge of agents.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    /// State in the words of HTTP.
    pub state: &'static str,
}

/// The registry and the front door's own metrics.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histogram,
    agents: Family<StateLabel, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        // Seconds; from a cached read to the bound of a kill.
        let request_seconds = Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 5.0, 30.0]);
        let metrics = Self { registry: Mutex::default(), requests: Family::default(), request_seconds, agents: Family::default() };
        metrics.register(|registry| {
            registry.register("mosaic_http_requests", "HTTP requests answered", metrics.requests.clone());
            registry.register("mosaic_http_request_seconds", "Time to the head of the answer", metrics.request_seconds.clone());
            registry.register("mosaic_agents", "Agents in the store by state", metrics.agents.clone());
        });
        metrics
    }
}

impl Metrics {
    /// Lets a part add its metrics; names begin with `mosaic_`.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Counts one answered request.
    pub fn count_request(&self, labels: &RequestLabels, duration: Duration) {
        self.requests.get_or_create(labels).inc();
        self.request_seconds.observe(duration.as_secs_f64());
    }

    /// Sets the gauge of agents in one state.
    pub fn set_agents(&self, state: &'static str, count: usize) {
        self.agents.get_or_create(&StateLabel { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Everything as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner)).expect("a String takes everything");
        text
    }
}
