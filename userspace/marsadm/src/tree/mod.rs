// SPDX-License-Identifier: GPL-2.0-or-later

//! The tree below `/mars`: how it is read and written ([`store`]), what its values mean ([`values`], formats are the
//! core's), and a typed snapshot of it ([`model`]).

pub mod model;
pub mod split;
pub mod store;
pub mod values;
