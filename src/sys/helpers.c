// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Kernel functions that only exist as inline functions or macros, and C
 * sequences that would be harder to read in Rust. See helpers.h.
 */
#include "helpers.h"

/* --- includes of the block half --- */
#include <linux/atomic.h>
#include <linux/kallsyms.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/wait_bit.h>
/* --- includes of the other half --- */

/* --- block: memory --- */

/* --- block: bio --- */

/* --- block: block device --- */

/* --- block: disk --- */

/* --- the other half --- */
