// SPDX-License-Identifier: GPL-2.0-or-later

//! The guest agent: what runs in a test machine besides the kernel.
//!
//! One static program in two roles, told apart by its process id.
//!
//! * [`init`]: process 1. Started from the initramfs, it loads the few modules that the root needs,
//!   stacks a tmpfs over the read-only root image, enters it, then starts the agent as a child,
//!   starts it again should it die, and reaps what others leave behind.
//! * [`agent`]: runs commands and moves files for the bench; it talks newline-delimited JSON over a
//!   virtio-serial port.
//!
//! Two processes, because a process that reaps every child can't also wait for its own ones.

mod agent;
mod base64;
mod init;
mod proto;
mod sys;

fn main() {
    if std::process::id() == 1 {
        init::main()
    } else if let Err(e) = agent::main() {
        sys::kmsg(&format!("agent: {e}"));
        std::process::exit(1);
    }
}
