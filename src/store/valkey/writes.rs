//! Writes, on a connection of their own, and what makes them durable.
//!
//! `WAITAOF 1 0` covers what its own connection wrote before it, and blocks that connection. So where durability is promised one task takes
//! whatever waits, sends it in one go with a `WAITAOF` behind it, looks at the count that comes back, and only then answers: concurrent
//! writers share one fsync of the server. A write whose answer did not come is never sent again: whoever asked reads and decides again.

use super::link::{ANSWER_WAIT_MAX, Link, LinkError};
use super::script::{Call, Reply, is_unknown_script};
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Most writes that wait; further ones wait before the queue, at most [`ANSWER_WAIT_MAX`].
const QUEUE_MAX: usize = 1024;
/// Most writes that share one fsync.
const BATCH_MAX: usize = 128;
/// How long the server may take until a write is on its disk, beyond which the answer is that this is not known.
const FSYNC_WAIT_MAX: Duration = Duration::from_secs(4);

type Answer = Result<Reply, LinkError>;

#[derive(Debug)]
struct Job {
    call: Call,
    reply: oneshot::Sender<Answer>,
}

/// Where writes go.
#[derive(Debug)]
pub(super) struct Writes {
    link: Arc<Link>,
    /// The queue to the task that waits for the disk; `None`: nobody waits for it.
    jobs: Option<mpsc::Sender<Job>>,
}

impl Writes {
    /// Starts the task where writes are waited for until they are on the disk of the server that has this slot.
    pub(super) fn new(link: Arc<Link>, durable: bool, slot: u16) -> Self {
        let jobs = durable.then(|| {
            let (jobs, queue) = mpsc::channel(QUEUE_MAX);
            tokio::spawn(run(link.clone(), queue, slot));
            jobs
        });
        Self { link, jobs }
    }

    /// Writes, and waits as long as was promised.
    pub(super) async fn run(&self, call: Call) -> Answer {
        let Some(jobs) = &self.jobs else {
            let value = self.link.call(ANSWER_WAIT_MAX, |client| async move { call.run(&client).await }).await?;
            return Reply::read(value).ok_or_else(odd);
        };
        let (reply, answer) = oneshot::channel();
        let full = |_| LinkError::Unreachable("too many writes wait already".to_owned());
        jobs.send_timeout(Job { call, reply }, ANSWER_WAIT_MAX).await.map_err(full)?;
        // What waits in the queue beyond this is not sent any more.
        let longest = ANSWER_WAIT_MAX + FSYNC_WAIT_MAX;
        let answered = tokio::time::timeout(longest, answer).await.map_err(|_| LinkError::Silent(longest))?;
        answered.unwrap_or_else(|_| Err(LinkError::Broken("the writer ended".to_owned())))
    }
}

/// Takes what waits, writes it, waits for the disk, answers; until the queue is closed and empty.
async fn run(link: Arc<Link>, mut queue: mpsc::Receiver<Job>, slot: u16) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
        // Who no longer waits needs no write.
        let (calls, replies): (Vec<Call>, Vec<_>) =
            batch.drain(..).filter(|job: &Job| !job.reply.is_closed()).map(|job| (job.call, job.reply)).unzip();
        let sent = link.call(ANSWER_WAIT_MAX + FSYNC_WAIT_MAX, |client| async move { write(&client, &calls, slot).await });
        let answers = sent.await.unwrap_or_else(|error| vec![Err(error); replies.len()]);
        for (reply, answer) in replies.into_iter().zip(answers) {
            drop(reply.send(answer));
        }
    }
}

/// Sends all in one go; what the server does not know yet once more by its text. Everybody is answered after the disk was waited for, also who
/// is refused: a refusal may rest on a write of the same batch.
pub(super) async fn write(client: &Client, calls: &[Call], slot: u16) -> Result<Vec<Answer>, Error> {
    let (mut values, mut durable) = send(client, &calls.iter().collect::<Vec<_>>(), false, slot).await?;
    let unknown: Vec<usize> = (0..calls.len()).filter(|at| values[*at].as_ref().is_err_and(is_unknown_script)).collect();
    if !unknown.is_empty() {
        let again: Vec<&Call> = unknown.iter().map(|at| &calls[*at]).collect();
        let (repeated, confirmed) = send(client, &again, true, slot).await?;
        unknown.iter().zip(repeated).for_each(|(at, value)| values[*at] = value);
        durable = durable.and(confirmed);
    }
    let answer = |value: Result<Value, Error>| {
        let value = value.map_err(|error| super::link::sort_out(&error))?;
        let reply = Reply::read(value).ok_or_else(odd)?;
        durable.clone().map_err(LinkError::NotDurable)?;
        Ok(reply)
    };
    Ok(values.into_iter().map(answer).collect())
}

type Confirmed = Result<(), String>;

/// One pipeline: the calls, then `WAITAOF`. The outer error is the connection's.
async fn send(client: &Client, calls: &[&Call], by_text: bool, slot: u16) -> Result<(Vec<Result<Value, Error>>, Confirmed), Error> {
    let pipeline = client.pipeline();
    for call in calls {
        call.send(&pipeline, by_text).await?;
    }
    wait_for_disk(&pipeline, slot).await?;
    let mut values = pipeline.try_all::<Value>().await;
    if values.len() != calls.len() + 1 {
        let cut = || Error::new(ErrorKind::IO, "the answer was cut off");
        return Err(values.into_iter().find_map(Result::err).unwrap_or_else(cut));
    }
    let last = values.pop().unwrap_or(Ok(Value::Null));
    Ok((values, confirmed(last)))
}

/// Asks the server to say when everything before is on its own disk.
pub(super) async fn wait_for_disk<C: ClientLike>(client: &C, slot: u16) -> Result<Value, Error> {
    let command = CustomCommand::new_static("WAITAOF", ClusterHash::Custom(slot), false);
    let millis = i64::try_from(FSYNC_WAIT_MAX.as_millis()).expect("a few seconds");
    client.custom(command, vec![1i64, 0, millis]).await
}

/// Whether the server's own disk has it. The answer counts: local disk, replicas.
pub(super) fn confirmed(answer: Result<Value, Error>) -> Confirmed {
    match answer {
        Ok(Value::Array(counts)) if counts.first().and_then(Value::as_i64).is_some_and(|local| local >= 1) => Ok(()),
        Ok(Value::Array(_)) => Err(format!("not within {} s", FSYNC_WAIT_MAX.as_secs())),
        Ok(other) => Err(format!("WAITAOF answered {other:?}")),
        Err(error) => Err(error.details().to_owned()),
    }
}

fn odd() -> LinkError {
    LinkError::Broken("the server answered something that is no answer of the store's scripts".to_owned())
}
