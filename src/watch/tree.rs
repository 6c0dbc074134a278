//! The watched directories: a node each (parent, name, watch), so that a rename moves one node and a path is put together
//! only when it is needed.
//!
//! The kernel gives one watch descriptor per inode. A directory that is reached by several names (symbolic links, bind
//! mounts) has several nodes with the same watch: aliases.

use super::by_watch::{ByWatch, Pages};

/// No node.
pub(crate) const NONE: u32 = u32::MAX;
/// No watch: the node's directory is gone, or not this one any more.
const DEAD: i32 = -1;

/// Sixteen bytes: there are many.
struct Node {
    wd: i32,
    parent: u32,
    /// Where its name lies in `Tree::names`, and how long it is. Of a root: the path as the user named it.
    name: u32,
    len: u16,
    /// Something that counts may be in it: it was there at the start, or such a file has been reported since.
    counts: bool,
}

/// What few nodes have.
#[derive(Clone, Copy, PartialEq)]
struct Rare {
    /// The next node with the same watch.
    alias: u32,
    /// The link that led here; `NONE` for a plain subdirectory.
    link: u32,
}

const NOTHING_RARE: Rare = Rare { alias: NONE, link: NONE };

/// So many bytes of names that nobody has any more are not worth moving the others together.
const FEW: usize = 4096;

#[derive(Default)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// All names: an allocation for each would take more memory than the nodes.
    names: Vec<u8>,
    /// Bytes in `names` that nobody has any more.
    waste: usize,
    free: Vec<u32>,
    /// The first node of each watch.
    by_wd: Pages,
    /// By node.
    rare: ByWatch<Rare>,
    /// Something was killed since the last sweep.
    died: bool,
}

impl Tree {
    fn node(&self, id: u32) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    /// A new node; `link` is the link that led to it, or `NONE`; `counts`: nobody knows what is in it.
    pub(crate) fn add(&mut self, parent: u32, name: &[u8], wd: i32, link: u32, counts: bool) -> u32 {
        let alias = self.by_wd.get(wd).unwrap_or(NONE);
        let (name, len) = self.keep_name(name);
        let node = Node { wd, parent, name, len, counts };
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        self.by_wd.insert(wd, id);
        self.set_rare(id, Rare { alias, link });
        id
    }

    fn rare(&self, id: u32) -> Rare {
        self.rare.get(&(id as i32)).copied().unwrap_or(NOTHING_RARE)
    }

    fn set_rare(&mut self, id: u32, rare: Rare) {
        match rare == NOTHING_RARE {
            true => self.rare.remove(&(id as i32)),
            false => self.rare.insert(id as i32, rare),
        };
    }

    /// The kernel's names have at most 255 bytes, its paths 4,096.
    fn keep_name(&mut self, name: &[u8]) -> (u32, u16) {
        let (from, len) = (self.names.len() as u32, u16::try_from(name.len()).unwrap_or(u16::MAX));
        self.names.extend_from_slice(&name[..len.into()]);
        (from, len)
    }

    fn name(&self, node: &Node) -> &[u8] {
        let (from, len) = (node.name as usize, usize::from(node.len));
        self.names.get(from..from + len).unwrap_or_default()
    }

    /// Gives the node another name, and moves all names together when more are waste than not.
    fn rename(&mut self, id: u32, name: &[u8]) {
        let (name, len) = self.keep_name(name);
        let node = &mut self.nodes[id as usize];
        self.waste += usize::from(node.len);
        (node.name, node.len) = (name, len);
        if self.waste > FEW.max(self.names.len() / 2) {
            let old = std::mem::take(&mut self.names);
            for node in &mut self.nodes {
                let (from, len) = (node.name as usize, usize::from(node.len));
                node.name = self.names.len() as u32;
                self.names.extend_from_slice(&old[from..from + len]);
            }
            self.waste = 0;
        }
    }

    pub(crate) fn wd(&self, id: u32) -> i32 {
        self.node(id).map_or(DEAD, |node| node.wd)
    }

    pub(crate) fn link(&self, id: u32) -> u32 {
        self.rare(id).link
    }

    pub(crate) fn knows(&self, wd: i32) -> bool {
        self.by_wd.get(wd).is_some()
    }

    /// The first node of a watch, or `NONE`; `next` leads to the others.
    pub(crate) fn first(&self, wd: i32) -> u32 {
        self.by_wd.get(wd).unwrap_or(NONE)
    }

    pub(crate) fn next(&self, id: u32) -> u32 {
        self.rare(id).alias
    }

    /// All nodes of a watch.
    pub(crate) fn of(&self, wd: i32) -> Vec<u32> {
        let mut all = Vec::new();
        let mut id = self.first(wd);
        while id != NONE {
            all.push(id);
            id = self.next(id);
        }
        all
    }

    /// The nodes right below.
    pub(crate) fn below(&self, id: u32) -> impl Iterator<Item = u32> + '_ {
        let alive = move |node: &Node| node.parent == id && node.wd != DEAD;
        (0..).zip(&self.nodes).filter(move |(_, node)| alive(node)).map(|(id, _)| id)
    }

    /// The plain node with this watch in this place.
    pub(crate) fn find(&self, wd: i32, parent: u32, name: &[u8]) -> Option<u32> {
        self.of(wd).into_iter().find(|id| {
            let plain = self.link(*id) == NONE;
            self.node(*id).is_some_and(|node| plain && node.parent == parent && self.name(node) == name)
        })
    }

    /// Where a node hangs: its parent and its name.
    pub(crate) fn place(&self, id: u32) -> (u32, Box<[u8]>) {
        self.node(id).map_or((NONE, Box::default()), |node| (node.parent, self.name(node).into()))
    }

    /// Appends the node's path as the user would write it; returns how long the root's part of it is.
    pub(crate) fn path(&self, id: u32, path: &mut Vec<u8>) -> usize {
        let Some(node) = self.node(id) else { return 0 };
        if node.parent == NONE {
            path.extend_from_slice(self.name(node));
            return node.len.into();
        }
        let inner = self.path(node.parent, path);
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(self.name(node));
        inner
    }

    /// May something that counts be in it?
    pub(crate) fn counts(&self, id: u32) -> bool {
        self.node(id).is_some_and(|node| node.counts)
    }

    /// A file that counts has been seen in this directory, and so in all that contain it.
    pub(crate) fn mark(&mut self, mut id: u32) {
        while let Some(node) = self.nodes.get_mut(id as usize).filter(|node| !node.counts) {
            node.counts = true;
            id = node.parent;
        }
    }

    /// Is this directory one of those that contain `parent`, or `parent` itself? Then following it would never end.
    pub(crate) fn is_loop(&self, mut parent: u32, wd: i32) -> bool {
        while let Some(node) = self.node(parent) {
            if node.wd == wd {
                return true;
            }
            parent = node.parent;
        }
        false
    }

    /// The node's directory has another name now.
    pub(crate) fn place_at(&mut self, id: u32, parent: u32, name: &[u8]) {
        // A directory cannot be moved into itself, but what is read late may look so.
        let mut above = parent;
        while let Some(node) = self.node(above) {
            if above == id {
                return;
            }
            above = node.parent;
        }
        if let Some(node) = self.nodes.get_mut(id as usize) {
            node.parent = parent;
            let counts = node.counts;
            self.rename(id, name);
            if counts {
                self.mark(parent);
            }
        }
    }

    /// The node is a plain directory now.
    pub(crate) fn unlink(&mut self, id: u32) {
        self.set_rare(id, Rare { link: NONE, ..self.rare(id) });
    }

    /// Takes the node's watch away.
    pub(crate) fn detach(&mut self, id: u32) {
        let (wd, Rare { alias, link }) = (self.wd(id), self.rare(id));
        if wd == DEAD {
            return;
        }
        let before = self.of(wd).into_iter().find(|other| self.next(*other) == id);
        match before {
            Some(before) => self.set_rare(before, Rare { alias, ..self.rare(before) }),
            None if alias == NONE => self.by_wd.remove(wd),
            None => self.by_wd.insert(wd, alias),
        }
        self.nodes[id as usize].wd = DEAD;
        self.set_rare(id, Rare { alias: NONE, link });
    }

    /// The node and all below it go at the next sweep. Returns its watch if nobody else has it.
    pub(crate) fn kill(&mut self, id: u32) -> Option<i32> {
        let wd = self.wd(id);
        self.detach(id);
        self.died = true;
        (wd != DEAD && !self.knows(wd)).then_some(wd)
    }

    /// Removes what hangs below killed nodes. Calls `gone` with each watch that no node has any more, and returns for each
    /// place whether a node is there, if anything was removed.
    pub(crate) fn sweep(&mut self, mut gone: impl FnMut(i32)) -> Option<Vec<bool>> {
        if !std::mem::replace(&mut self.died, false) {
            return None;
        }
        let mut alive = vec![None; self.nodes.len()];
        for start in 0..self.nodes.len() {
            let (mut way, mut id) = (Vec::new(), start as u32);
            // Up to a root, a dead node, or one that is known already.
            let answer = loop {
                let Some(node) = self.node(id) else { break true };
                if let Some(answer) = alive[id as usize] {
                    break answer;
                }
                way.push(id);
                if node.wd == DEAD {
                    break false;
                }
                id = node.parent;
            };
            way.into_iter().for_each(|id| alive[id as usize] = Some(answer));
        }
        let mut free = std::mem::take(&mut self.free);
        let mut dead: Vec<bool> = alive.iter().map(|alive| *alive == Some(false)).collect();
        free.iter().for_each(|id| dead[*id as usize] = false);
        for (id, _) in (0..).zip(&dead).filter(|(_, dead)| **dead) {
            if let Some(wd) = self.kill(id) {
                gone(wd);
            }
            self.rename(id, b"");
            self.set_rare(id, NOTHING_RARE);
            free.push(id);
        }
        self.free = free;
        self.died = false;
        Some(alive.into_iter().map(|alive| alive == Some(true)).collect())
    }

    /// Every watch that a node has.
    pub(crate) fn watches(&self) -> impl Iterator<Item = i32> + '_ {
        self.by_wd.keys()
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(tree: &Tree, id: u32) -> String {
        let mut path = Vec::new();
        tree.path(id, &mut path);
        String::from_utf8(path).unwrap()
    }

    #[test]
    fn a_rename_moves_one_node() {
        let mut tree = Tree::default();
        let root = tree.add(NONE, b"src", 1, 0, true);
        let a = tree.add(root, b"a", 2, NONE, true);
        let b = tree.add(a, b"b", 3, NONE, true);
        assert_eq!(path(&tree, b), "src/a/b");
        let mut after = b"before".to_vec();
        assert_eq!((tree.path(b, &mut after), after), (3, b"beforesrc/a/b".to_vec()));
        tree.place_at(a, root, b"z");
        assert_eq!(path(&tree, b), "src/z/b");
        tree.place_at(root, b, b"x");
        assert_eq!(path(&tree, b), "src/z/b", "never into itself");
        assert_eq!(tree.find(3, a, b"b"), Some(b));
        assert!(tree.is_loop(b, 1) && !tree.is_loop(a, 3));
    }

    #[test]
    fn what_counts_below_counts_above() {
        let mut tree = Tree::default();
        let root = tree.add(NONE, b"/r", 1, 0, false);
        let a = tree.add(root, b"a", 2, NONE, false);
        let b = tree.add(root, b"b", 3, NONE, false);
        let c = tree.add(a, b"c", 4, NONE, false);
        tree.mark(b);
        assert_eq!([root, a, b, c].map(|id| tree.counts(id)), [true, false, true, false]);
        tree.place_at(b, c, b"b");
        assert_eq!([root, a, b, c].map(|id| tree.counts(id)), [true, true, true, true]);
    }

    #[test]
    fn names_are_moved_together() {
        let mut tree = Tree::default();
        let root = tree.add(NONE, b"/r", 1, 0, true);
        let nodes: Vec<u32> = (2..400).map(|wd| tree.add(root, format!("n{wd}").as_bytes(), wd, NONE, true)).collect();
        for round in 0..50 {
            for (i, id) in nodes.iter().enumerate() {
                tree.place_at(*id, root, format!("round-{round}-{i}").as_bytes());
            }
        }
        assert!(tree.names.len() < 20_000, "{}", tree.names.len());
        assert_eq!((path(&tree, root), path(&tree, nodes[7])), ("/r".into(), "/r/round-49-7".into()));
    }

    #[test]
    fn aliases_share_a_watch_and_a_sweep_removes_subtrees() {
        let mut tree = Tree::default();
        let root = tree.add(NONE, b"/r", 1, 0, true);
        let a = tree.add(root, b"a", 2, NONE, true);
        let link = tree.add(root, b"l", 2, 1, true);
        let under = tree.add(a, b"u", 3, NONE, true);
        assert_eq!(tree.of(2), [link, a]);
        assert_eq!(tree.kill(a), None, "its watch is still used");
        let mut gone = Vec::new();
        let alive = tree.sweep(|wd| gone.push(wd)).unwrap();
        assert_eq!((gone, tree.len()), (vec![3], 2));
        assert_eq!(alive, [true, false, true, false]);
        assert!(tree.sweep(|_| ()).is_none());
        assert_eq!(tree.kill(link), Some(2));
        tree.sweep(|_| panic!("already told"));
        let again = tree.add(root, b"n", 9, NONE, true);
        assert!([a, link, under].contains(&again), "places are used again");
    }
}
