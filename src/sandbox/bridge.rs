//! From blocking code to calls over the network: a small runtime of its own, usable from any thread, whatever runtime that belongs to.

use std::io;
use std::sync::mpsc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// Pause between two looks whether a call is still wanted.
const WANTED_PAUSE: Duration = Duration::from_millis(200);

/// The runtime; it goes with this value, and what still runs on it is broken off.
pub(crate) struct Bridge(Option<Runtime>);

impl Bridge {
    pub(crate) fn new() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("mosaic-engine").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("it is there until the bridge is dropped")
    }

    /// Begins a call and waits for nothing.
    pub(crate) fn begin(&self, call: impl Future<Output = ()> + Send + 'static) {
        self.runtime().spawn(call);
    }

    /// Waits for the end of a call, which must have a time limit.
    pub(crate) fn wait<T: Send + 'static>(&self, call: impl Future<Output = T> + Send + 'static) -> T {
        self.wait_beside(call, || ()).0
    }

    /// The same, doing something else meanwhile.
    pub(crate) fn wait_beside<T: Send + 'static, U>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
        work: impl FnOnce() -> U,
    ) -> (T, U) {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.begin(async move { drop(sender.send(call.await)) });
        let done = work();
        (receiver.recv().expect("the runtime outlives the call, and the call ends"), done)
    }

    /// Waits for the end of a call; `None`: it was not wanted any more and is broken off.
    pub(crate) fn wait_unless<T: Send + 'static>(
        &self,
        is_over: &dyn Fn() -> bool,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let task = self.runtime().spawn(async move { drop(sender.send(call.await)) });
        loop {
            match receiver.recv_timeout(WANTED_PAUSE) {
                Ok(done) => return Some(done),
                Err(mpsc::RecvTimeoutError::Timeout) if !is_over() => {}
                Err(_) => {
                    task.abort();
                    return None;
                }
            }
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
