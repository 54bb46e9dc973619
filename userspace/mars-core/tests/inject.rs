// SPDX-License-Identifier: GPL-2.0-or-later

//! Properties of the fault injector's rules.

use kernel::alloc::flags::GFP_KERNEL;
use mars_core::inject::{
    flip,
    Action,
    Kind,
    Rule,
    Rules, //
};
use proptest::prelude::*;

fn rules(rule: Rule, seed: u64) -> Rules {
    let mut rules = Rules::with_capacity(1, GFP_KERNEL).unwrap();
    rules.set_seed(seed);
    assert!(rules.add(rule, 0));
    rules
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Die),
        (1u16..4096).prop_map(Action::Error),
        Just(Action::NoMemory),
        any::<u32>().prop_map(Action::Delay),
        Just(Action::Stall),
        any::<u64>().prop_map(Action::Truncate),
        any::<Option<u64>>().prop_map(Action::Flip),
        any::<i64>().prop_map(Action::Jump),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    (
        action(),
        any::<u64>(),
        proptest::option::of(1..u64::MAX),
        1..u64::MAX,
        proptest::option::of((any::<u64>(), any::<u64>())),
        proptest::option::of(1..u64::MAX),
    )
        .prop_map(|(action, after, times, one_in, range, for_ms)| Rule {
            point: 0,
            action,
            after,
            times,
            one_in,
            range: range.map(|(a, b)| (a.min(b), a.max(b))),
            for_ms,
        })
}

/// What can obey it.
fn kind_for(action: Action) -> Kind {
    if Kind::Clock.can(action) {
        Kind::Clock
    } else {
        Kind::Data
    }
}

proptest! {
    #[test]
    fn given_any_rule_when_it_is_written_and_read_then_it_is_the_same(rule in rule()) {
        let mut line = format!("p {}", rule.action);
        rule.write_conditions(&mut line).unwrap();
        let found = Rule::parse(&line, |p| (p == "p").then_some((0, kind_for(rule.action))));
        prop_assert_eq!(found, Ok(rule));
    }

    #[test]
    fn given_any_line_when_it_is_read_then_nothing_breaks(line in "\\PC{0,80}") {
        let _ = Rule::parse(&line, |_| Some((0, Kind::Data)));
    }

    #[test]
    fn given_any_words_of_the_grammar_when_they_are_read_then_what_is_taken_is_within_its_kind(
        action in "[a-z]{3,8}(=-?[0-9]{1,6})?",
        rest in "( (after|times|range|for|probability)=[0-9/-]{1,8}){0,3}",
        kind in 0usize..5,
    ) {
        let kind = [Kind::Step, Kind::Memory, Kind::Pass, Kind::Data, Kind::Clock][kind];
        if let Ok(rule) = Rule::parse(&format!("p {action}{rest}"), |_| Some((0, kind))) {
            prop_assert!(kind.can(rule.action));
            prop_assert!(rule.one_in > 0);
        }
    }

    #[test]
    fn given_the_same_seed_when_points_are_passed_then_the_same_passes_fire(
        seed: u64, one_in in 1u64..50, after in 0u64..20,
    ) {
        let rule = Rule { point: 0, action: Action::Flip(None), after, times: None, one_in, range: None, for_ms: None };
        let run = || {
            let mut rules = rules(rule, seed);
            (0..300).map(|_| rules.pass(0, 0, 0, 0).map(|h| h.random)).collect::<Vec<_>>()
        };
        let one = run();
        prop_assert_eq!(&one, &run());
        prop_assert!(one.iter().take(usize::try_from(after).unwrap()).all(Option::is_none));
    }

    #[test]
    fn given_a_probability_when_a_point_is_passed_often_then_about_so_many_fire(seed: u64, one_in in 1u64..20) {
        let rule = Rule { point: 0, action: Action::Die, after: 0, times: None, one_in, range: None, for_ms: None };
        let mut rules = rules(rule, seed);
        let passes = 20_000u64;
        let fired = (0..passes).filter(|_| rules.pass(0, 0, 0, 0).is_some()).count();
        let expected = usize::try_from(passes / one_in).unwrap();
        prop_assert!(fired.abs_diff(expected) <= expected / 4 + 1, "{} instead of {}", fired, expected);
    }

    #[test]
    fn given_a_limit_when_a_point_is_passed_then_it_never_fires_more_often(
        times in 1u64..20, passes in 0u64..200, one_in in 1u64..5,
    ) {
        let rule = Rule { point: 0, action: Action::Die, after: 0, times: Some(times), one_in, range: None, for_ms: None };
        let mut rules = rules(rule, 7);
        let fired = (0..passes).filter(|_| rules.pass(0, 0, 0, 0).is_some()).count();
        prop_assert!(u64::try_from(fired).unwrap() <= times);
        prop_assert_eq!(rules.iter().next().unwrap().fired, u64::try_from(fired).unwrap());
    }

    #[test]
    fn given_any_data_when_a_bit_is_flipped_then_exactly_one_bit_differs(
        data in proptest::collection::vec(any::<u8>(), 1..200), bit: Option<u64>, random: u64,
    ) {
        let mut other = data.clone();
        flip(&mut other, bit, random);
        let bits: u32 = data.iter().zip(&other).map(|(a, b)| (a ^ b).count_ones()).sum();
        prop_assert_eq!(bits, 1);
    }
}
