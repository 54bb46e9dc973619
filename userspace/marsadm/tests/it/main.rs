// SPDX-License-Identifier: GPL-2.0-or-later

//! The real binary against a scratch tree and a thread that behaves as the kernels of several hosts would.

mod cluster;
mod crash;
mod golden;
mod harness;
mod kernel;
mod network;
mod refusals;
mod views;
