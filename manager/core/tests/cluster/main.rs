//! A cluster in virtual time: the deciding core, with agents that do what they are told.

mod containers;
mod control;
mod depends;
mod jobs;
mod lifecycle;
mod network;
mod plan;
mod properties;
mod removal;
mod restart;
mod roles;
mod rotation;
mod schedule;
mod schedule_best;
mod sim;
mod update;
mod volumes;
