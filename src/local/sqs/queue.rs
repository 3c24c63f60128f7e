//! One queue: its messages, when each may be seen, and who waits for them. It knows no wire.
//!
//! Messages that may not be seen yet lie ordered by their deadline, so that finding those that have
//! come due costs nothing when there are none, however many are in flight.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::error::{Code, Error};
use super::settings::Settings;

/// As on AWS. Past it, a receive finds nothing until messages are deleted.
const IN_FLIGHT_MAX: usize = 120_000;

/// AWS knows no such bounds; here they keep a runaway producer from taking the machine's memory.
const MESSAGES_MAX: usize = 500_000;
const BYTES_MAX: usize = 512 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) name: Arc<str>,
    pub(super) created_ms: u64,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) settings: Settings,
    messages: HashMap<Uuid, Message>,
    /// Oldest first. May name messages that were deleted since; whoever pops skips them.
    ready: VecDeque<Uuid>,
    delayed: BTreeSet<(Instant, Uuid)>,
    in_flight: BTreeSet<(Instant, Uuid)>,
    bytes: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) body: Arc<str>,
    pub(super) body_md5: Arc<str>,
    pub(super) sent_ms: u64,
    pub(super) first_received_ms: Option<u64>,
    /// Counts on in the dead-letter queue, as on AWS.
    pub(super) receives: u32,
    /// The queue that gave the message up, on a dead letter.
    pub(super) given_up_by: Option<Arc<str>>,
    visible: Visible,
}

#[derive(Clone, Copy, Debug)]
enum Visible {
    Now,
    /// Sent with a delay.
    Delayed(Instant),
    /// Received, neither deleted nor given back.
    InFlight(Instant),
}

/// Names one receive of one message: every further receive makes the handles before it stale.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handle {
    pub(super) id: Uuid,
    pub(super) receives: u32,
}

/// How many messages a queue holds in each state. All three are exact, whatever the names on the
/// wire say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) ready: usize,
    pub(super) delayed: usize,
    pub(super) in_flight: usize,
}

impl Queue {
    pub(super) fn new(name: &str, settings: Settings, now_ms: u64) -> Queue {
        let state = Mutex::new(State { settings, ..State::default() });
        Queue { name: name.into(), created_ms: now_ms, state, wake: Notify::new() }
    }

    /// Runs `f` on the queue as it is now, and wakes whoever waits for what `f` made possible.
    pub(super) fn change<T>(&self, f: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let mut state = self.lock();
        state.promote(now);
        let due_before = state.next_due();
        let outcome = f(&mut state, now);
        state.promote(now);
        let due_sooner =
            state.next_due().is_some_and(|due| due_before.is_none_or(|due_before| due < due_before));
        // At the cap nobody can take any: to wake them would only make them spin.
        let some_to_take = !state.ready.is_empty() && state.in_flight.len() < IN_FLIGHT_MAX;
        drop(state);
        if due_sooner {
            // All who wait sleep until the deadline that they saw: let them see the new one.
            self.wake.notify_waiters();
        }
        if some_to_take {
            // One is enough: who leaves messages behind comes through here and wakes the next.
            self.wake.notify_one();
        }
        outcome
    }

    /// Calls `take` until it finds something or `wait` is over. Whoever drops this future (a client
    /// that hung up) has taken nothing: a taking call returns before the next await.
    pub(super) async fn wait<T>(&self, wait: Duration, mut take: impl FnMut() -> Option<T>) -> Option<T> {
        let give_up = Instant::now() + wait;
        loop {
            // Made before looking, so that a message that comes in between is not slept through.
            let woken = self.wake.notified();
            if let Some(taken) = take() {
                return Some(taken);
            }
            if give_up <= Instant::now() {
                return None;
            }
            let due = self.lock().next_due().map_or(give_up, |due| due.min(give_up));
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No operation leaves a half-made change behind where it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Message {
    pub(super) fn new(body: &str, now_ms: u64) -> Message {
        Message {
            body: body.into(),
            body_md5: crate::local::md5_hex(body.as_bytes()).into(),
            sent_ms: now_ms,
            first_received_ms: None,
            receives: 0,
            given_up_by: None,
            visible: Visible::Now,
        }
    }
}

impl State {
    pub(super) fn counts(&self) -> Counts {
        let (delayed, in_flight) = (self.delayed.len(), self.in_flight.len());
        Counts { ready: self.messages.len() - delayed - in_flight, delayed, in_flight }
    }

    pub(super) fn send(
        &mut self,
        id: Uuid,
        message: Message,
        visible_at: Option<Instant>,
    ) -> Result<(), Error> {
        if MESSAGES_MAX <= self.messages.len() || BYTES_MAX < self.bytes + message.body.len() {
            let message = "The queue is full: this local server bounds what it keeps in memory.";
            return Err(Error::new(Code::OverLimit, message));
        }
        self.accept(id, message, visible_at);
        Ok(())
    }

    /// Takes a message in whatever the bounds say: a dead letter has nowhere else to go.
    pub(super) fn accept(&mut self, id: Uuid, mut message: Message, visible_at: Option<Instant>) {
        self.bytes += message.body.len();
        message.visible = match visible_at {
            Some(at) => {
                self.delayed.insert((at, id));
                Visible::Delayed(at)
            }
            None => {
                self.ready.push_back(id);
                Visible::Now
            }
        };
        self.messages.insert(id, message);
    }

    /// Receives up to `max` messages and hides them until `hidden_until`. Those that were received
    /// `receives_max` times already leave the queue instead, into `dead`.
    pub(super) fn receive(
        &mut self,
        max: usize,
        hidden_until: Instant,
        now_ms: u64,
        receives_max: Option<u32>,
        dead: &mut Vec<(Uuid, Message)>,
    ) -> Vec<(Uuid, Message)> {
        let mut received = Vec::new();
        while received.len() < max && self.in_flight.len() < IN_FLIGHT_MAX {
            let Some(id) = self.ready.pop_front() else { break };
            let Some(message) = self.messages.get_mut(&id) else { continue };
            if receives_max.is_some_and(|receives_max| receives_max <= message.receives) {
                dead.extend(self.remove(id).map(|message| (id, message)));
                continue;
            }
            message.receives += 1;
            message.first_received_ms.get_or_insert(now_ms);
            message.visible = Visible::InFlight(hidden_until);
            self.in_flight.insert((hidden_until, id));
            received.push((id, message.clone()));
        }
        received
    }

    /// Deletes what the handle received. A second delete is no error, nor is a stale handle; but a
    /// stale handle deletes nothing, since the message is somebody else's by now.
    pub(super) fn delete(&mut self, handle: Handle) {
        if self.messages.get(&handle.id).is_some_and(|message| message.receives == handle.receives) {
            self.remove(handle.id);
        }
    }

    pub(super) fn hide(&mut self, handle: Handle, until: Instant) -> Result<(), Error> {
        let message = match self.messages.get_mut(&handle.id) {
            Some(message) if message.receives == handle.receives => message,
            Some(_) | None => {
                let reason = "Message does not exist or is not available for visibility timeout change.";
                return Err(Error::invalid_value("ReceiptHandle", handle.id, reason));
            }
        };
        let Visible::InFlight(hidden_until) = message.visible else {
            return Err(Error::new(
                Code::MessageNotInflight,
                "The message is not in flight: its time ran out.",
            ));
        };
        message.visible = Visible::InFlight(until);
        self.in_flight.remove(&(hidden_until, handle.id));
        self.in_flight.insert((until, handle.id));
        Ok(())
    }

    pub(super) fn purge(&mut self) {
        *self = State { settings: self.settings.clone(), ..State::default() };
    }

    fn remove(&mut self, id: Uuid) -> Option<Message> {
        let message = self.messages.remove(&id)?;
        self.bytes -= message.body.len();
        match message.visible {
            Visible::Now => false,
            Visible::Delayed(until) => self.delayed.remove(&(until, id)),
            Visible::InFlight(until) => self.in_flight.remove(&(until, id)),
        };
        Some(message)
    }

    fn next_due(&self) -> Option<Instant> {
        let first = |hidden: &BTreeSet<(Instant, Uuid)>| hidden.first().map(|(due, _)| *due);
        [first(&self.delayed), first(&self.in_flight)].into_iter().flatten().min()
    }

    /// Makes visible what has come due.
    fn promote(&mut self, now: Instant) {
        for hidden in [&mut self.delayed, &mut self.in_flight] {
            while hidden.first().is_some_and(|(due, _)| *due <= now) {
                let Some((_, id)) = hidden.pop_first() else { break };
                if let Some(message) = self.messages.get_mut(&id) {
                    message.visible = Visible::Now;
                    self.ready.push_back(id);
                }
            }
        }
    }
}
