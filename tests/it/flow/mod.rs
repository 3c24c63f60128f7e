//! The paid run through its doors: HTTP in, queue and reaper behind, and the books at the end.

mod crash;
mod gate;
mod guard;
mod processes;
mod reaper;
mod submit;
mod wire;
