//! Ids in order, beside a set in memory.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::store::id::Id;
use crate::store::sorted::Gathering;

proptest! {
    #[test]
    fn all_that_were_added_each_once(numbers in prop::collection::vec(0..300_u32, 0..5000), most in 2..200_usize) {
        let id = |number: u32| Id(*blake3::hash(&number.to_le_bytes()).as_bytes());
        let mut gathering = Gathering::holding(most);
        for &number in &numbers {
            gathering.add(id(number)).unwrap();
        }
        let sorted = gathering.finish();
        let expected: BTreeSet<Id> = numbers.into_iter().map(id).collect();
        for _ in 0..2 {
            let (mut found, mut ids) = (Vec::new(), sorted.iter().unwrap());
            while let Some(id) = ids.next().unwrap() {
                found.push(id);
            }
            prop_assert_eq!(&found, &expected.iter().copied().collect::<Vec<_>>());
        }
    }
}
