//! `GET /queue`: counts from the records, order from the controller. Positions are computed when read, never stored.

use super::Ctx;
use super::error::Problem;
use super::view::{AgentView, QueuePosition, QueueView};
use crate::store::Kind;
use axum::Json;
use axum::extract::State;

/// Most positions that are told.
pub const POSITIONS_MAX: usize = 1000;

/// The handler.
/// # Errors
/// The store does not answer.
pub async fn queue(State(state): Ctx) -> Result<Json<QueueView>, Problem> {
    let (records, _) = state.store.list(Kind::Agent).await?;
    let order = (state.queue)().await;
    let agents: Vec<AgentView> = records.iter().map(AgentView::of).collect();
    let count = |states: &[&str]| agents.iter().filter(|a| states.contains(&a.state.as_str())).count();
    // What started between the two looks waits no more.
    let waiting =
        order.iter().filter_map(|uid| agents.iter().find(|a| a.agent_id == uid.as_str() && a.state == "pending")).take(POSITIONS_MAX);
    let positions = waiting.enumerate().map(|(i, agent)| QueuePosition {
        position: i + 1,
        agent_id: agent.agent_id.clone(),
        name: agent.name.clone(),
        namespace: agent.namespace.clone(),
        priority: agent.priority,
        reason: agent.reason.clone(),
    });
    Ok(Json(QueueView {
        pending: count(&["pending"]),
        active: count(&["spawning", "running"]),
        completed: count(&["completed"]),
        failed: count(&["failed", "killed"]),
        positions: positions.collect(),
    }))
}
