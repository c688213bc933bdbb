//! Mosaic: an orchestrator of AI coding agents shaped like a Kubernetes controller. This page is the architecture document.
//!
//! People declare an [`api::agent::Agent`] (a task on a git repository); a reconcile loop makes it real: an isolated sandbox, a working
//! tree, quality gates, and at the end a push that was read back. Deleting the declaration is the kill switch.
//!
//! # Bird's-eye view
//!
//! One idea: [`plan::plan`]`(desired, observed, permit, now) -> Plan` is a pure function. All other code carries facts to it or carries
//! out its answer.
//!
//! ```text
//!  HTTP, CLI ──> store ──watch──> controller ──> one pass:
//!                  ^                read live -> observe -> plan -> status (compare-and-set) -> effects
//!                  └── status ──────┘                 │                                            │
//!                                                     │     ┌─> sandbox    the agent or a gate runs here; untrusted
//!                                     fleet: who may ─┘     ├─> workspace  repositories, trees, snapshot, merge, push
//!                                     run now               ├─> gates      what decides, from the trusted branch
//!                                                           └─> audit      intent before, outcome after
//! ```
//!
//! A blocking effect (a fetch, a sandbox's start, a push) is started and forgotten; its end wakes the record again, and the next pass finds
//! its outcome. So no pass waits for an agent, and a stop is never stuck behind work. A crash loses only the in-flight table: every effect
//! is idempotent and is simply done again.
//!
//! # Code map, in reading order
//!
//! | module | question | notes |
//! |---|---|---|
//! | [`api`] | what is wanted | records shared by all stores; schema, CEL rules and typed names |
//! | [`store`] | where it is kept | the Kubernetes API contract in small; keepers `embedded`, `valkey` and `kube`; leases |
//! | [`plan`] | what to do next | pure: lifecycle, teardown, fleet, gates, retries, orphans, invariants |
//! | [`effect`] | doing it | `World`: look and do; one arm per action; the in-flight table |
//! | [`kill`] | ending, whatever else is stuck | latch, SIGKILL by every path, a look, receipts; needs neither store nor engine nor controller; `lost` finds what no folder tells of |
//! | [`sandbox`] | where agents run | `Sandbox`: ensure, observe, stop, remove; drivers `process`, `docker` and `pod`; `runs` what they share, `link` how init speaks with us |
//! | [`workspace`] | what agents work on | the one place that runs `git` is `workspace::remote` |
//! | [`gates`], [`tools`] | what judges, with which tools | definitions come from the trusted branch only |
//! | [`audit`], [`journal`], [`cleanups`] | what happened | append-only, chained; intent before each effect, outcome after; what was swept up |
//! | [`controller`] | again and again | triggers, one queue, one pass |
//! | [`server`], [`client`], [`cli`] | front door | read and write records through `Store`; a kill goes to the lane first; never touch a sandbox otherwise |
//! | [`up`], [`heap`], [`doctor`] | all of it together | the wiring of `mosaic up`; what its memory costs; what a host can do |
//! | [`inside`] | inside a sandbox | `mosaic-init`, PID 1; shares only `inside::wire` with the rest |
//!
//! # Invariants
//!
//! - A push is impossible without a pass verdict for exactly that commit on exactly that base, stored before the push starts.
//! - Nothing that was deleted, killed or halted ever starts again. `Killed` is latched and never cleared.
//! - At most one live sandbox per agent and at most one live attempt; uid and attempt fence every effect.
//! - What could not be looked at is unknown: it creates nothing and destroys nothing.
//! - The finalizer goes last: after everything of the agent was seen gone and its unpushed work was kept. (Of pods whose controller never comes back
//!   the tree is given up after a minute, and the record says so; that nothing runs is seen all the same.)
//! - Facts are durable before the effects that need them; the phase is a summary that no code branches on.
//!
//! `plan::invariants` states these in code; tests, the simulation and debug builds check every plan against them.

#[cfg(feature = "controller")]
pub mod api;
#[cfg(feature = "controller")]
pub mod store;

#[cfg(feature = "controller")]
pub mod plan;

#[cfg(feature = "controller")]
pub mod askpass;
#[cfg(feature = "controller")]
mod beneath;
#[cfg(feature = "controller")]
pub mod causes;
#[cfg(feature = "controller")]
pub mod cleanups;
#[cfg(feature = "controller")]
pub mod durable;
#[cfg(feature = "controller")]
pub mod effect;
#[cfg(feature = "controller")]
pub mod gates;
#[cfg(feature = "controller")]
pub mod kill;
#[cfg(feature = "controller")]
pub mod sandbox;
#[cfg(feature = "controller")]
pub mod tools;
#[cfg(feature = "controller")]
pub mod workspace;

#[cfg(feature = "controller")]
pub mod audit;
#[cfg(feature = "controller")]
pub mod controller;
#[cfg(feature = "controller")]
pub mod journal;

#[cfg(feature = "controller")]
pub mod cli;
#[cfg(feature = "controller")]
pub mod client;
#[cfg(feature = "controller")]
pub mod config;
#[cfg(feature = "controller")]
pub mod doctor;
#[cfg(feature = "controller")]
pub mod heap;
#[cfg(feature = "controller")]
pub mod server;
#[cfg(feature = "controller")]
pub mod telemetry;
#[cfg(feature = "controller")]
pub mod up;

pub mod inside;
