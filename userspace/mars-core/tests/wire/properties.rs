// SPDX-License-Identifier: GPL-2.0-or-later

//! The same with thousands of drawn inputs.

use kernel::inject;
use mars_core::wire::frame::*;
use mars_core::wire::message::bulk::*;
use mars_core::wire::message::handshake::*;
use mars_core::wire::message::meta::*;
use mars_core::wire::message::*;
use mars_core::wire::schema::Fields;
use proptest::prelude::*;

use crate::util::*;

fn any_kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL)
}

proptest! {
    #[test]
    fn random_bytes_never_panic_nor_allocate_nor_yield_a_frame(bytes: Vec<u8>) {
        let before = inject::allocations();
        prop_assert!(Header::parse::<HostDigest>(&bytes, MAX_PAYLOAD).is_err());
        prop_assert_eq!(inject::allocations(), before);
    }

    #[test]
    fn random_payloads_never_panic_and_what_is_accepted_is_stable(
        kind in any_kind(),
        payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        if let Ok(again) = recode(kind, &payload) {
            prop_assert_eq!(recode(kind, &again), Ok(again.clone()));
        }
    }

    #[test]
    fn random_fields_never_panic_and_what_is_accepted_is_stable(
        kind in any_kind(),
        fields in prop::collection::vec((0u16..18, 0u16..8, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
    ) {
        let mut payload = Vec::new();
        for (tag, ty, bytes) in &fields {
            payload.extend(tag.to_le_bytes());
            payload.extend(ty.to_le_bytes());
            payload.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
            payload.extend(bytes);
        }
        prop_assert_eq!(Fields::new(&payload).filter(Result::is_ok).count(), fields.len());
        if let Ok(again) = recode(kind, &payload) {
            prop_assert_eq!(recode(kind, &again), Ok(again.clone()));
        }
    }

    #[test]
    fn changed_samples_never_panic_and_what_is_accepted_is_stable(
        which in 0..samples().len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut: Option<prop::sample::Index>,
    ) {
        let (kind, mut payload) = samples().swap_remove(which);
        if payload.is_empty() {
            return Ok(());
        }
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()));
        }
        if let Ok(again) = recode(kind, &payload) {
            prop_assert_eq!(recode(kind, &again), Ok(again.clone()));
        }
        if let Ok(tree) = Tree::decode(&payload) {
            tree.entries().for_each(drop);
        }
    }

    #[test]
    fn log_reads_of_any_values_arrive_or_are_refused_on_both_sides_alike(
        number: u32, offset: u64, max: u32, wait_ms: u32, log_id: u64, aligned: bool,
    ) {
        let mask = if aligned { 511 } else { 0 };
        let (offset, max) = (offset & !mask, max & !(mask as u32));
        let read = LogRead { resource: name("r"), number, creator: name("h"), offset, max, wait_ms, log_id };
        let mut out = kernel::alloc::KVec::new();
        if read.encode(&mut out).is_ok() {
            prop_assert_eq!(LogRead::decode(&out), Ok(read));
            prop_assert!(offset.checked_add(max.into()).is_some() && max <= MAX_DATA && max > 0);
        } else {
            prop_assert!(out.is_empty());
        }
    }

    #[test]
    fn entries_of_any_text_arrive(path in "\\PC{1,60}", value in "[^\0\n]{0,300}", sec: u64) {
        let entry = Entry { path: &path, value: value.as_bytes(), stamp: time(sec) };
        let mut out = kernel::alloc::KVec::new();
        let head = TreeHead { instance: 1, generation: 1, full: true, now: time(1) };
        let mut writer = TreeWriter::new(&mut out, 1 << 16, &head).unwrap();
        let fits = path.len() <= MAX_PATH && value.len() <= MAX_VALUE;
        prop_assert_eq!(writer.push(&entry).is_ok(), fits);
        writer.finish(false).unwrap();
        let tree = Tree::decode(&out).unwrap();
        let back: Vec<_> = tree.entries().collect();
        prop_assert_eq!(back, if fits { vec![Ok(entry)] } else { vec![] });
    }

    /// A man in the middle who repairs all checksums, but has no key.
    #[test]
    fn a_handshake_with_any_changed_payload_is_never_completed_by_both(
        step in 0usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
        features in 0u64..2,
    ) {
        let key = key(1);
        let with = |host| mars_core::wire::auth::Identity { features, required: 0, ..identity(host, UUID, &key) };
        let mut changed = false;
        let outcome = shake(with("alpha"), None, Purpose::Meta, with("beta"), 0, NONCES, &mut |at, bytes| {
            let header = Header::parse::<HostDigest>(&bytes, MAX_UNAUTHENTICATED).unwrap();
            let (payload, code) = header.split_body::<HostDigest>(payload_of(&bytes)).unwrap();
            let mut forged = payload.to_vec();
            if at != step || forged.is_empty() {
                return bytes;
            }
            for (index, mask) in &changes {
                let index = index.index(forged.len());
                forged[index] ^= mask;
            }
            changed = forged != payload;
            let repaired = Header::new::<HostDigest>(header.kind, header.id, &[&forged]).unwrap();
            let repaired = Header { flags: header.flags, ..repaired };
            [&repaired.encode::<HostDigest>()[..], &forged, code].concat()
        });
        // The welcome of a connection without codes is not protected: nothing in it is believed.
        prop_assert!(!changed || !outcome.is_established() || (step == 3 && features == 0));
    }

    #[test]
    fn a_proof_is_never_good_for_other_random_numbers(nonce_c: [u8; 32], nonce_s: [u8; 32], other: [u8; 32]) {
        prop_assume!(nonce_c != [0; 32] && nonce_s != [0; 32] && nonce_c != nonce_s && other != [0; 32]);
        prop_assume!(other != nonce_s && other != nonce_c);
        let key = key(1);
        let (alpha, beta) = (identity("alpha", UUID, &key), identity("beta", UUID, &key));
        let mut record = Vec::new();
        let outcome = shake(alpha, None, Purpose::Sync, beta, 2, (nonce_c, nonce_s), &mut |_, bytes| {
            record.push(bytes.clone());
            bytes
        });
        prop_assert!(outcome.is_established());
        let outcome = shake(alpha, None, Purpose::Sync, beta, 2, (nonce_c, other), &mut |at, bytes| {
            if at == 2 { record[2].clone() } else { bytes }
        });
        prop_assert!(outcome.server.is_err());
    }
}
