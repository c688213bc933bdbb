//! Mosaic: an orchestrator of AI coding agents shaped like a Kubernetes controller.
//!
//! One idea: `plan(agent, observed, fleet, now) -> Plan` is a pure function. All other code carries facts to it or carries out its answer.

#[cfg(feature = "controller")]
pub mod api;
#[cfg(feature = "controller")]
pub mod cli;
#[cfg(feature = "controller")]
pub mod client;
#[cfg(feature = "controller")]
pub mod config;
#[cfg(feature = "controller")]
pub mod controller;
#[cfg(feature = "controller")]
pub mod effect;
#[cfg(feature = "controller")]
pub mod gates;
pub mod inside;
#[cfg(feature = "controller")]
pub mod plan;
#[cfg(feature = "controller")]
pub mod sandbox;
#[cfg(feature = "controller")]
pub mod server;
#[cfg(feature = "controller")]
pub mod store;
#[cfg(feature = "controller")]
pub mod telemetry;
#[cfg(feature = "controller")]
pub mod tools;
#[cfg(feature = "controller")]
pub mod up;
