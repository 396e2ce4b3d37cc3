//! What the core decides: golden texts of whole plans, a fixed-point property over random ones, DNS answers.

#![allow(clippy::unwrap_used)]

mod dns;
mod fixed_point;
mod golden;
mod random;
mod scenario;
mod suspects;
mod trace;
