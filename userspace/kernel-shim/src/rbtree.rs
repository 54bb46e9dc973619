// SPDX-License-Identifier: GPL-2.0-or-later

//! Ordered map, see `rust/kernel/rbtree.rs`.
//!
//! A sorted vector of boxes stands for the red-black tree: the interface, not the running time, is
//! what matters here, and a cursor is then an index.

use crate::{
    alloc::Flags,
    error::{
        code::ENOMEM,
        Result, //
    },
};
use core::marker::PhantomData;

type Node<K, V> = Box<(K, V)>;

/// A map with ordered keys.
pub struct RBTree<K, V> {
    nodes: Vec<Node<K, V>>,
}

/// A node that is in no tree.
pub struct RBTreeNode<K, V> {
    node: Node<K, V>,
}

/// Memory for a node.
pub struct RBTreeNodeReservation<K, V>(PhantomData<fn() -> (K, V)>);

impl<K, V> RBTreeNodeReservation<K, V> {
    /// Allocates memory for a node.
    pub fn new(_flags: Flags) -> Result<Self> {
        if crate::inject::should_fail() {
            return Err(ENOMEM);
        }
        Ok(Self(PhantomData))
    }

    /// Makes a node of it.
    pub fn into_node(self, key: K, value: V) -> RBTreeNode<K, V> {
        RBTreeNode {
            node: Box::new((key, value)),
        }
    }
}

impl<K, V> RBTreeNode<K, V> {
    /// Allocates a node.
    pub fn new(key: K, value: V, flags: Flags) -> Result<Self> {
        Ok(RBTreeNodeReservation::new(flags)?.into_node(key, value))
    }

    /// Key and value.
    pub fn to_key_value(self) -> (K, V) {
        *self.node
    }

    /// Drops key and value and keeps the memory.
    pub fn into_reservation(self) -> RBTreeNodeReservation<K, V> {
        RBTreeNodeReservation(PhantomData)
    }
}

impl<K, V> RBTree<K, V> {
    /// An empty tree.
    pub fn new() -> Self {
        Self { nodes: Vec::new() }
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The nodes in order.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter(self.nodes.iter())
    }

    /// The nodes in order.
    pub fn iter_mut(&mut self) -> IterMut<'_, K, V> {
        IterMut(self.nodes.iter_mut())
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &'_ K> {
        self.iter().map(|(k, _)| k)
    }

    /// The values in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &'_ V> {
        self.iter().map(|(_, v)| v)
    }

    /// The values in the order of their keys.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &'_ mut V> {
        self.iter_mut().map(|(_, v)| v)
    }

    fn cursor_at(&self, at: usize) -> Option<Cursor<'_, K, V>> {
        (at < self.nodes.len()).then_some(Cursor {
            nodes: &self.nodes,
            at,
        })
    }

    fn cursor_mut_at(&mut self, at: usize) -> Option<CursorMut<'_, K, V>> {
        (at < self.nodes.len()).then_some(CursorMut { tree: self, at })
    }

    /// A cursor at the smallest key.
    pub fn cursor_front(&self) -> Option<Cursor<'_, K, V>> {
        self.cursor_at(0)
    }

    /// A cursor at the smallest key.
    pub fn cursor_front_mut(&mut self) -> Option<CursorMut<'_, K, V>> {
        self.cursor_mut_at(0)
    }

    /// A cursor at the largest key.
    pub fn cursor_back(&self) -> Option<Cursor<'_, K, V>> {
        self.cursor_at(self.nodes.len().checked_sub(1)?)
    }

    /// A cursor at the largest key.
    pub fn cursor_back_mut(&mut self) -> Option<CursorMut<'_, K, V>> {
        self.cursor_mut_at(self.nodes.len().checked_sub(1)?)
    }
}

impl<K: Ord, V> RBTree<K, V> {
    fn find(&self, key: &K) -> Result<usize, usize> {
        self.nodes.binary_search_by(|n| n.0.cmp(key))
    }

    /// Inserts; returns the node with this key that was there before.
    pub fn try_create_and_insert(
        &mut self,
        key: K,
        value: V,
        flags: Flags,
    ) -> Result<Option<RBTreeNode<K, V>>> {
        Ok(self.insert(RBTreeNode::new(key, value, flags)?))
    }

    /// Inserts; returns the node with this key that was there before.
    pub fn insert(&mut self, node: RBTreeNode<K, V>) -> Option<RBTreeNode<K, V>> {
        match self.find(&node.node.0) {
            Ok(at) => Some(RBTreeNode {
                node: core::mem::replace(&mut self.nodes[at], node.node),
            }),
            Err(at) => {
                self.nodes.insert(at, node.node);
                None
            }
        }
    }

    /// The entry of a key.
    pub fn entry(&mut self, key: K) -> Entry<'_, K, V> {
        match self.find(&key) {
            Ok(at) => Entry::Occupied(OccupiedEntry { tree: self, at }),
            Err(at) => Entry::Vacant(VacantEntry {
                tree: self,
                at,
                key,
            }),
        }
    }

    /// The entry of a key, if it exists.
    pub fn find_mut(&mut self, key: &K) -> Option<OccupiedEntry<'_, K, V>> {
        let at = self.find(key).ok()?;
        Some(OccupiedEntry { tree: self, at })
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let at = self.find(key).ok()?;
        Some(&self.nodes[at].1)
    }

    /// The value of a key.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.find(key).ok()?;
        Some(&mut self.nodes[at].1)
    }

    /// Removes the node of a key.
    pub fn remove_node(&mut self, key: &K) -> Option<RBTreeNode<K, V>> {
        self.find_mut(key).map(OccupiedEntry::remove_node)
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.find_mut(key).map(OccupiedEntry::remove)
    }

    /// A cursor at the key or, without it, at the first larger one.
    pub fn cursor_lower_bound(&self, key: &K) -> Option<Cursor<'_, K, V>> {
        self.cursor_at(self.find(key).unwrap_or_else(|at| at))
    }

    /// A cursor at the key or, without it, at the first larger one.
    pub fn cursor_lower_bound_mut(&mut self, key: &K) -> Option<CursorMut<'_, K, V>> {
        let at = self.find(key).unwrap_or_else(|at| at);
        self.cursor_mut_at(at)
    }
}

impl<K, V> Default for RBTree<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

/// The nodes in order.
pub struct Iter<'a, K, V>(core::slice::Iter<'a, Node<K, V>>);

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|n| (&n.0, &n.1))
    }
}

/// The nodes in order.
pub struct IterMut<'a, K, V>(core::slice::IterMut<'a, Node<K, V>>);

impl<'a, K, V> Iterator for IterMut<'a, K, V> {
    type Item = (&'a K, &'a mut V);
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|n| {
            let (k, v) = &mut **n;
            (&*k, v)
        })
    }
}

impl<'a, K, V> IntoIterator for &'a RBTree<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, K, V> IntoIterator for &'a mut RBTree<K, V> {
    type Item = (&'a K, &'a mut V);
    type IntoIter = IterMut<'a, K, V>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

/// A position in a tree.
pub struct Cursor<'a, K, V> {
    nodes: &'a [Node<K, V>],
    at: usize,
}

impl<K, V> Cursor<'_, K, V> {
    /// The current node.
    pub fn current(&self) -> (&K, &V) {
        let n = &self.nodes[self.at];
        (&n.0, &n.1)
    }

    /// The node before.
    pub fn peek_prev(&self) -> Option<(&K, &V)> {
        let n = self.nodes.get(self.at.checked_sub(1)?)?;
        Some((&n.0, &n.1))
    }

    /// The node after.
    pub fn peek_next(&self) -> Option<(&K, &V)> {
        let n = self.nodes.get(self.at.checked_add(1)?)?;
        Some((&n.0, &n.1))
    }

    // The kernel's read-only cursor can not move.
}

/// A position in a tree that can be changed.
pub struct CursorMut<'a, K, V> {
    tree: &'a mut RBTree<K, V>,
    at: usize,
}

impl<K, V> CursorMut<'_, K, V> {
    /// The current node.
    pub fn current(&self) -> (&K, &V) {
        let n = &self.tree.nodes[self.at];
        (&n.0, &n.1)
    }

    /// The current node.
    pub fn current_mut(&mut self) -> (&K, &mut V) {
        let n = &mut *self.tree.nodes[self.at];
        (&n.0, &mut n.1)
    }

    /// Removes the current node; the cursor goes to the next one, else to the one before.
    pub fn remove_current(self) -> (Option<Self>, RBTreeNode<K, V>) {
        let node = self.tree.nodes.remove(self.at);
        let cursor = match self.tree.nodes.len() {
            0 => None,
            len => Some(Self {
                at: self.at.min(len - 1),
                tree: self.tree,
            }),
        };
        (cursor, RBTreeNode { node })
    }

    /// Removes the node before.
    pub fn remove_prev(&mut self) -> Option<RBTreeNode<K, V>> {
        let at = self.at.checked_sub(1)?;
        self.at = at;
        Some(RBTreeNode {
            node: self.tree.nodes.remove(at),
        })
    }

    /// Removes the node after.
    pub fn remove_next(&mut self) -> Option<RBTreeNode<K, V>> {
        let at = self.at.checked_add(1)?;
        (at < self.tree.nodes.len()).then(|| RBTreeNode {
            node: self.tree.nodes.remove(at),
        })
    }

    /// Moves to the node before.
    pub fn move_prev(self) -> Option<Self> {
        let at = self.at.checked_sub(1)?;
        Some(Self { at, ..self })
    }

    /// Moves to the node after.
    pub fn move_next(self) -> Option<Self> {
        let at = self.at.checked_add(1)?;
        (at < self.tree.nodes.len()).then_some(Self { at, ..self })
    }

    /// The node before.
    pub fn peek_prev(&self) -> Option<(&K, &V)> {
        let n = self.tree.nodes.get(self.at.checked_sub(1)?)?;
        Some((&n.0, &n.1))
    }

    /// The node after.
    pub fn peek_next(&self) -> Option<(&K, &V)> {
        let n = self.tree.nodes.get(self.at.checked_add(1)?)?;
        Some((&n.0, &n.1))
    }

    /// The node before.
    pub fn peek_prev_mut(&mut self) -> Option<(&K, &mut V)> {
        let n = self.tree.nodes.get_mut(self.at.checked_sub(1)?)?;
        Some((&n.0, &mut n.1))
    }

    /// The node after.
    pub fn peek_next_mut(&mut self) -> Option<(&K, &mut V)> {
        let n = self.tree.nodes.get_mut(self.at.checked_add(1)?)?;
        Some((&n.0, &mut n.1))
    }
}

/// The place of a key.
pub enum Entry<'a, K, V> {
    /// There is no node with this key.
    Vacant(VacantEntry<'a, K, V>),
    /// There is a node with this key.
    Occupied(OccupiedEntry<'a, K, V>),
}

/// The place where a key is missing.
pub struct VacantEntry<'a, K, V> {
    tree: &'a mut RBTree<K, V>,
    at: usize,
    key: K,
}

impl<'a, K, V> VacantEntry<'a, K, V> {
    /// Inserts the key.
    pub fn insert(self, value: V, reservation: RBTreeNodeReservation<K, V>) -> &'a mut V {
        let node = reservation.into_node(self.key, value).node;
        self.tree.nodes.insert(self.at, node);
        &mut self.tree.nodes[self.at].1
    }
}

/// The place of a key that exists.
pub struct OccupiedEntry<'a, K, V> {
    tree: &'a mut RBTree<K, V>,
    at: usize,
}

impl<'a, K, V> OccupiedEntry<'a, K, V> {
    /// The value.
    pub fn get(&self) -> &V {
        &self.tree.nodes[self.at].1
    }

    /// The value.
    pub fn get_mut(&mut self) -> &mut V {
        &mut self.tree.nodes[self.at].1
    }

    /// The value for as long as the tree is borrowed.
    pub fn into_mut(self) -> &'a mut V {
        &mut self.tree.nodes[self.at].1
    }

    /// Removes the node.
    pub fn remove_node(self) -> RBTreeNode<K, V> {
        RBTreeNode {
            node: self.tree.nodes.remove(self.at),
        }
    }

    /// Removes the node, returns the value.
    pub fn remove(self) -> V {
        self.remove_node().to_key_value().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alloc::flags::GFP_KERNEL;

    fn tree() -> RBTree<u32, u32> {
        let mut t = RBTree::new();
        for k in [30, 10, 20] {
            assert!(matches!(
                t.try_create_and_insert(k, k * 10, GFP_KERNEL),
                Ok(None)
            ));
        }
        t
    }

    #[test]
    fn keys_are_ordered_and_replaced() {
        let mut t = tree();
        assert!(t.keys().copied().eq([10, 20, 30]));
        let Ok(Some(old)) = t.try_create_and_insert(20, 7, GFP_KERNEL) else {
            panic!("the old node is returned");
        };
        assert_eq!(old.to_key_value(), (20, 200));
        assert_eq!(t.get(&20), Some(&7));
        assert_eq!(t.remove(&20), Some(7));
        assert_eq!(t.get(&20), None);
    }

    #[test]
    fn cursors_walk_and_remove_like_the_kernels() {
        let mut t = tree();
        let c = t.cursor_lower_bound_mut(&15).unwrap();
        assert_eq!(c.current(), (&20, &200));
        let (c, removed) = c.remove_current();
        assert_eq!(removed.to_key_value(), (20, 200));
        let c = c.unwrap();
        assert_eq!(c.current(), (&30, &300));
        let (c, _) = c.remove_current();
        let mut c = c.unwrap();
        assert_eq!(c.current(), (&10, &100));
        assert!(c.remove_prev().is_none());
        assert!(c.remove_next().is_none());
        assert!(c.remove_current().0.is_none());
        assert!(t.cursor_lower_bound(&0).is_none());
    }
}
