//! Combines single requests into batches without waiting for a batch to fill: while one batch is on
//! its way, the next gathers. No task of its own: whoever waits sends for all.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use tokio::sync::{Semaphore, oneshot};

use super::Error;

/// The most entries that SQS takes in one call.
const BATCH_MAX: usize = 10;
/// Batches on their way at once.
const FLIGHTS_MAX: usize = 4;

type Waiting<T> = (T, oneshot::Sender<Result<(), Error>>);

pub(super) struct Combine<T> {
    waiting: Mutex<VecDeque<Waiting<T>>>,
    flights: Semaphore,
}

impl<T> Combine<T> {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::new(VecDeque::new()), flights: Semaphore::new(FLIGHTS_MAX) }
    }

    /// Has `item` sent with whatever else waits. `send` answers for each item of its batch, in order.
    pub(super) async fn run(
        &self,
        item: T,
        send: impl AsyncFn(&[T]) -> Vec<Result<(), Error>>,
    ) -> Result<(), Error> {
        let (answer, mut answered) = oneshot::channel();
        self.queue().push_back((item, answer));
        loop {
            tokio::select! {
                biased;
                // The sender of this item's batch was dropped with it: the batch may have arrived.
                result = &mut answered => return result.unwrap_or_else(|gone| Err(Error::Unavailable(gone.into()))),
                flight = self.flights.acquire() => {
                    let _flight = flight.map_err(|closed| Error::Unavailable(closed.into()))?;
                    let (items, answers): (Vec<_>, Vec<_>) = {
                        let mut queue = self.queue();
                        let count = queue.len().min(BATCH_MAX);
                        queue.drain(..count).unzip()
                    };
                    if items.is_empty() {
                        continue;
                    }
                    for (answer, result) in answers.into_iter().zip(send(&items).await) {
                        // Whoever no longer waits does not want to know.
                        let _ = answer.send(result);
                    }
                }
            }
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<Waiting<T>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
