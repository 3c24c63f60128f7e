//! Combines single requests into batches without waiting for a batch to fill: while one batch is on
//! its way, the next gathers. No task of its own: whoever waits sends for all.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use super::Error;

/// The most entries that SQS takes in one call.
const BATCH_MAX: usize = 10;
/// Batches on their way at once.
const FLIGHTS_MAX: usize = 4;

type Answer = oneshot::Sender<Result<(), Error>>;

pub(super) struct Combine<T> {
    waiting: Mutex<VecDeque<(T, Answer)>>,
    flights: Semaphore,
}

/// One item's wait for its answer.
pub(super) struct Ticket(oneshot::Receiver<Result<(), Error>>);

/// What a waiter is to do next.
pub(super) enum Turn<'a, T> {
    /// Its item has been sent, by itself or by another.
    Answered(Result<(), Error>),
    /// It is to send this batch, which may or may not hold its own item, and come again.
    Send(Batch<'a, T>),
}

/// Items on their way. Dropping it unanswered tells their waiters that the outcome is unknown.
pub(super) struct Batch<'a, T> {
    pub(super) items: Vec<T>,
    answers: Vec<Answer>,
    _flight: SemaphorePermit<'a>,
}

impl<T> Combine<T> {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::new(VecDeque::new()), flights: Semaphore::new(FLIGHTS_MAX) }
    }

    pub(super) fn enter(&self, item: T) -> Ticket {
        let (answer, answered) = oneshot::channel();
        self.queue().push_back((item, answer));
        Ticket(answered)
    }

    pub(super) async fn turn(&self, ticket: &mut Ticket) -> Turn<'_, T> {
        tokio::select! {
            biased;
            result = &mut ticket.0 => Turn::Answered(known(result)),
            flight = self.flights.acquire() => {
                let flight = match flight {
                    Ok(flight) => flight,
                    Err(closed) => return Turn::Answered(Err(Error::Unavailable(closed.into()))),
                };
                let (items, answers): (Vec<_>, Vec<_>) = {
                    let mut queue = self.queue();
                    let count = queue.len().min(BATCH_MAX);
                    queue.drain(..count).unzip()
                };
                if !items.is_empty() {
                    return Turn::Send(Batch { items, answers, _flight: flight });
                }
                // This item is on its way in another's batch.
                drop(flight);
                Turn::Answered(known((&mut ticket.0).await))
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<(T, Answer)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Batch<'_, T> {
    /// Hands each waiter its result; one for each item, in order.
    pub(super) fn answer(self, results: Vec<Result<(), Error>>) {
        for (answer, result) in self.answers.into_iter().zip(results) {
            // Whoever no longer waits does not want to know.
            let _ = answer.send(result);
        }
    }
}

/// A batch whose sender was dropped may have arrived.
fn known(result: Result<Result<(), Error>, oneshot::error::RecvError>) -> Result<(), Error> {
    result.unwrap_or_else(|gone| Err(Error::Unavailable(gone.into())))
}
