// SPDX-License-Identifier: GPL-2.0-or-later

//! The messages between bench and agent: one JSON object per line, each way.
//!
//! A request carries an `id` that its answer repeats; answers come in any order. After it has opened
//! the port the agent says [`Hello`] unasked, so that the bench sees a reboot. A line the other side
//! can't read (the rest of a line cut off by a reset) is dropped.

use serde::Deserialize;
use serde::Serialize;

#[derive(Deserialize)]
pub struct Request {
    pub id: u64,
    #[serde(flatten)]
    pub op: Op,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// Answered at once.
    Ping,
    /// `bash -c cmd`; answered when it has ended.
    Exec {
        cmd: String,
        /// Base 64.
        stdin: Option<String>,
        /// Seconds, after which the whole process group is killed.
        timeout: Option<f64>,
    },
    /// A signal to the process group of an unfinished `exec`.
    Signal { target: u64, signal: i32 },
    /// What an unfinished `exec` has printed so far.
    Peek { target: u64 },
    /// Writes `data` (base 64) to a file; the first piece truncates it.
    Put {
        path: String,
        data: String,
        append: bool,
        mode: u32,
    },
    /// Reads a piece of a file.
    Get {
        path: String,
        offset: u64,
        len: usize,
    },
    /// To a copy of a machine: the time of day, and what makes its random numbers its own (base 64).
    Wake { time_ns: u64, seed: String },
    /// `restart`, `poweroff` or `halt`, without touching file systems.
    Reboot { how: String },
}

#[derive(Serialize)]
pub struct Hello<'a> {
    pub hello: u32,
    pub boot_id: &'a str,
    pub uptime: &'a str,
    pub kernel: &'a str,
    pub clocksource: &'a str,
}

/// An answer; fields that do not apply stay out of it.
#[derive(Default, Serialize)]
pub struct Answer {
    pub id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Exit status, or minus the signal's number as Python has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rc: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Text>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// Processes that even SIGKILL did not end, with their kernel stacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stuck: Option<String>,
    /// Seconds the command took, by the guest's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// Output: a plain string where it is UTF-8, else an object with base 64.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Text {
    Utf8(String),
    Bytes { b64: String },
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(s) => Text::Utf8(s),
            Err(e) => Text::Bytes {
                b64: crate::base64::encode(e.as_bytes()),
            },
        }
    }
}
