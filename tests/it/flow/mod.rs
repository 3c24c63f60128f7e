//! The paid run through its doors: HTTP in, queue and reaper behind, and the books at the end.

mod audit;
mod cancel;
mod crash;
mod due;
mod edges;
mod gate;
mod guard;
mod operator;
mod processes;
mod reaper;
mod submit;
mod wire;
