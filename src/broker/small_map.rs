//! An ordered map that is cheap to clone at every size: a short sorted list while it is small, a
//! persistent tree beyond. Most exchanges, keys and topic words have few entries, and a list needs one
//! allocation and no pointer chasing; the few that have thousands must not be copied for each bind.

use rpds::RedBlackTreeMapSync;
use std::borrow::Borrow;

/// Entries up to which the list is used; copying that many pointers costs about as much as one path of a tree.
const FEW_MAX: usize = 16;

/// Entries below which a tree becomes a list again; less than [`FEW_MAX`] so that one entry coming and
/// going at the limit does not rebuild the map each time.
const FEW_AGAIN: usize = 8;

/// A map in ascending key order; a clone shares its contents until one of the two changes.
#[derive(Clone, Debug)]
pub struct SmallMap<K: Ord + Clone, V: Clone>(Shape<K, V>);

#[derive(Clone, Debug)]
enum Shape<K: Ord + Clone, V: Clone> {
    Few(Vec<(K, V)>),
    Many(RedBlackTreeMapSync<K, V>),
}

impl<K: Ord + Clone, V: Clone> Default for SmallMap<K, V> {
    fn default() -> Self {
        SmallMap(Shape::Few(Vec::new()))
    }
}

impl<K: Ord + Clone, V: Clone> SmallMap<K, V> {
    /// How many entries it has.
    pub fn len(&self) -> usize {
        match &self.0 {
            Shape::Few(list) => list.len(),
            Shape::Many(tree) => tree.size(),
        }
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of that key.
    pub fn find<B: Ord + ?Sized>(&self, key: &B) -> Option<&V>
    where
        K: Borrow<B>,
    {
        match &self.0 {
            Shape::Few(list) => {
                let at = list.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
                list.get(at).map(|(_, value)| value)
            }
            Shape::Many(tree) => tree.get(key),
        }
    }

    /// The value of that key, to change; what other clones see stays as it is.
    pub fn find_mut<B: Ord + ?Sized>(&mut self, key: &B) -> Option<&mut V>
    where
        K: Borrow<B>,
    {
        match &mut self.0 {
            Shape::Few(list) => {
                let at = list.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
                list.get_mut(at).map(|(_, value)| value)
            }
            Shape::Many(tree) => tree.get_mut(key),
        }
    }

    /// Puts a value in; one that had the same key is replaced.
    pub fn insert(&mut self, key: K, value: V) {
        match &mut self.0 {
            Shape::Few(list) => match list.binary_search_by(|(k, _)| k.cmp(&key)) {
                Ok(at) => list.splice(at..=at, [(key, value)]).for_each(drop),
                Err(at) if list.len() < FEW_MAX => list.insert(at, (key, value)),
                Err(_) => {
                    let mut tree = RedBlackTreeMapSync::new_sync();
                    list.drain(..).chain([(key, value)]).for_each(|(k, v)| tree.insert_mut(k, v));
                    self.0 = Shape::Many(tree);
                }
            },
            Shape::Many(tree) => tree.insert_mut(key, value),
        }
    }

    /// Takes an entry out and returns its value.
    pub fn remove<B: Ord + ?Sized>(&mut self, key: &B) -> Option<V>
    where
        K: Borrow<B>,
    {
        match &mut self.0 {
            Shape::Few(list) => {
                let at = list.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
                Some(list.remove(at).1)
            }
            Shape::Many(tree) => {
                let value = tree.get(key)?.clone();
                tree.remove_mut(key);
                if tree.size() < FEW_AGAIN {
                    let list = tree.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
                    self.0 = Shape::Few(list);
                }
                Some(value)
            }
        }
    }

    /// All entries in ascending order. Allocates only when there are many.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let (few, many) = match &self.0 {
            Shape::Few(list) => (Some(list), None),
            Shape::Many(tree) => (None, Some(tree)),
        };
        let few = few.into_iter().flatten().map(|(key, value)| (key, value));
        few.chain(many.into_iter().flat_map(RedBlackTreeMapSync::iter))
    }

    /// All values in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_as_an_ordered_map_across_both_shapes(ops in prop::collection::vec((any::<bool>(), 0u8..40), 0..200)) {
            let (mut map, mut model) = (SmallMap::default(), BTreeMap::new());
            for (step, (insert, key)) in ops.into_iter().enumerate() {
                let before = map.clone();
                let was: Vec<(u8, usize)> = before.iter().map(|(k, v)| (*k, *v)).collect();
                if insert {
                    map.insert(key, step);
                    model.insert(key, step);
                } else {
                    prop_assert_eq!(map.remove(&key), model.remove(&key));
                }
                if let Some(value) = map.find_mut(&(key / 2)) {
                    *value += 1;
                    model.entry(key / 2).and_modify(|v| *v += 1);
                }
                prop_assert!(map.iter().eq(model.iter()));
                prop_assert!(before.iter().map(|(k, v)| (*k, *v)).eq(was), "a clone must not change");
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(map.find(&key), model.get(&key));
            }
        }
    }
}
