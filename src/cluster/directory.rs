//! Who is online: uid → connections, in 256 parts, so that a snapshot can be taken part by part.

mod part;

use std::mem;

use hashbrown::DefaultHashBuilder;

use crate::model::{ConnectionNumber, Millis, Uid};

use part::{Found, Part};

/// How many parts the directory has.
pub(crate) const PARTS: usize = 256;

/// FNV-1a 64: the same on every node, whatever its build. (Tables within a node are keyed by a random hash.)
pub(crate) fn fnv(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Where [`fnv`] begins.
pub(crate) const FNV_SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// The part that `uid` is in, 0 to 255, the same on every node: FNV-1a 64 of its bytes, mixed as MurmurHash3 ends
/// (FNV's low byte alone depends on the low bits only), & 255.
pub(crate) fn part_of(uid: &str) -> usize {
    let mut hash = fnv(FNV_SEED, uid.as_bytes());
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    usize::from(hash.to_le_bytes()[0])
}

/// The index of a live node in [`State`](super::fold::State): shorter than its incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeIndex(pub(crate) u32);

/// One connection of a uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connection {
    /// The place of its claim in the log.
    pub(crate) epoch: u64,
    /// The node that holds it.
    pub(crate) node: NodeIndex,
    /// Its number there.
    pub(crate) number: ConnectionNumber,
    /// When it was accepted: seconds since 1970, as in a snapshot, so that a joining node decides alike.
    pub(crate) accepted: u32,
    spare: Spare,
}

/// A byte with one value: the other 255 tell the variants of [`Held`] apart, in what would be padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Spare {
    Zero = 0,
}

impl Connection {
    pub(crate) fn new(epoch: u64, node: NodeIndex, number: ConnectionNumber, accepted: Millis) -> Self {
        let accepted = u32::try_from(accepted.0 / 1000).unwrap_or(u32::MAX);
        Self { epoch, node, number, accepted, spare: Spare::Zero }
    }

    pub(crate) fn is(&self, node: NodeIndex, number: ConnectionNumber) -> bool {
        self.node == node && self.number == number
    }
}

/// The connections of one uid; one is by far the most frequent, and is kept in place.
#[derive(Debug, Clone)]
enum Held {
    One(Connection),
    Many(Box<Many>),
}

#[derive(Debug, Clone)]
struct Many {
    /// Oldest first.
    connections: Vec<Connection>,
    /// The highest epoch that a connection of this uid has had while it was online. With several connections the
    /// newest may end first: then no connection has it any more, and a snapshot must not fall below it.
    epoch: u64,
}

/// A uid that is online.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    uid: Uid,
    since: Millis,
    held: Held,
}

impl Entry {
    pub(crate) fn uid(&self) -> &Uid {
        &self.uid
    }

    /// When it came online.
    pub(crate) fn since(&self) -> Millis {
        self.since
    }

    /// Its connections, oldest first; at least one.
    pub(crate) fn connections(&self) -> &[Connection] {
        match &self.held {
            Held::One(only) => std::slice::from_ref(only),
            Held::Many(many) => &many.connections,
        }
    }

    pub(crate) fn newest(&self) -> &Connection {
        self.connections().last().expect("an entry without connections is removed")
    }

    /// The highest epoch since it came online.
    pub(crate) fn epoch(&self) -> u64 {
        match &self.held {
            Held::One(only) => only.epoch,
            Held::Many(many) => many.epoch,
        }
    }

    fn take(&mut self) -> (Vec<Connection>, u64) {
        match &mut self.held {
            Held::One(only) => (vec![*only], only.epoch),
            Held::Many(many) => (mem::take(&mut many.connections), many.epoch),
        }
    }

    fn put(&mut self, connections: Vec<Connection>, epoch: u64) {
        self.held = match connections[..] {
            [only] if only.epoch == epoch => Held::One(only),
            _ => Held::Many(Box::new(Many { connections, epoch })),
        };
    }

    /// Removes what `gone` says; tells whether any is left.
    fn remove(&mut self, gone: impl Fn(&Connection) -> bool) -> bool {
        if let Held::One(only) = &self.held {
            return !gone(only);
        }
        if !self.connections().iter().any(&gone) {
            return true;
        }
        let (mut connections, epoch) = self.take();
        connections.retain(|connection| !gone(connection));
        let any = !connections.is_empty();
        self.put(connections, epoch);
        any
    }
}

/// What a claim asks for.
pub(crate) struct Claim<'a> {
    pub(crate) uid: &'a Uid,
    /// The log's time.
    pub(crate) at: Millis,
    pub(crate) connection: Connection,
    /// Over a second old at its place in the log: it takes nothing from a newer connection.
    pub(crate) aged: bool,
    /// The same node's connection whose place it takes.
    pub(crate) replaces: Option<ConnectionNumber>,
    /// How many connections a uid may have.
    pub(crate) limit: usize,
}

/// Every uid that is online.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    parts: Box<[Part]>,
    hasher: DefaultHashBuilder,
    uids: u64,
}

impl Directory {
    pub(crate) fn new() -> Self {
        let parts = (0..PARTS).map(|_| Part::default()).collect();
        Self { parts, hasher: DefaultHashBuilder::default(), uids: 0 }
    }

    /// How many uids are online.
    pub(crate) fn uids(&self) -> u64 {
        self.uids
    }

    pub(crate) fn get(&self, uid: &str) -> Option<&Entry> {
        self.parts[part_of(uid)].get(uid, &self.hasher)
    }

    /// The entries of one part, in no order.
    pub(crate) fn part(&self, part: usize) -> impl ExactSizeIterator<Item = &Entry> {
        self.parts[part].iter()
    }

    /// Puts an entry of a snapshot in: what it holds, oldest connection first, at least one, and its
    /// [`epoch`](Entry::epoch). The uid isn't there yet.
    pub(crate) fn put(&mut self, uid: Uid, since: Millis, epoch: u64, connections: Vec<Connection>) {
        let part = &mut self.parts[part_of(uid.as_str())];
        let mut entry = Entry { held: Held::One(connections[0]), uid, since };
        entry.put(connections, epoch);
        part.insert(entry, &self.hasher);
        self.uids += 1;
    }

    /// Takes a connection in; true where the uid comes online by it. `displaced` is told of each connection that
    /// has to go, which may be the new one.
    pub(crate) fn claim(&mut self, claim: &Claim<'_>, mut displaced: impl FnMut(&Connection)) -> bool {
        let Self { parts, hasher, uids } = self;
        let (uid, new) = (claim.uid, claim.connection);
        let comes = || Entry { uid: uid.clone(), since: claim.at, held: Held::One(new) };
        let entry = match parts[part_of(uid.as_str())].get_or_insert(uid.as_str(), comes, hasher) {
            Found::New => {
                *uids += 1;
                return true;
            }
            Found::Old(entry) => entry,
        };
        let (mut connections, epoch) = entry.take();
        connections.retain(|old| {
            // Its node has ended it already.
            let replaced = old.node == new.node && Some(old.number) == claim.replaces;
            // A number claimed twice is one connection still.
            !replaced && !old.is(new.node, new.number)
        });
        let index = match claim.aged {
            true => connections.iter().position(|old| old.accepted > new.accepted).unwrap_or(connections.len()),
            false => connections.len(),
        };
        connections.insert(index, new);
        let mut stays = true;
        while connections.len() > claim.limit {
            let oldest = connections.remove(0);
            stays &= !oldest.is(new.node, new.number);
            displaced(&oldest);
        }
        if stays {
            // The text of the newest: that of the oldest may go with its connection.
            entry.uid = uid.clone();
        }
        entry.put(connections, if stays { epoch.max(new.epoch) } else { epoch });
        false
    }

    /// Removes the connection that `is` it; true where the uid goes offline by it.
    pub(crate) fn release(&mut self, uid: &str, is: impl Fn(&Connection) -> bool) -> bool {
        let Self { parts, hasher, uids } = self;
        let goes = parts[part_of(uid)].remove_if(uid, |entry| !entry.remove(is), hasher);
        *uids -= u64::from(goes);
        goes
    }

    /// Removes every connection of `node` from one part; `offline` gets the uids that go offline by it. Tells how many
    /// uids the part had.
    pub(crate) fn end_in(&mut self, part: usize, node: NodeIndex, mut offline: impl FnMut(Uid)) -> usize {
        let Self { parts, hasher, uids } = self;
        let part = &mut parts[part];
        let before = part.len();
        let goes = |entry: &mut Entry| !entry.remove(|connection| connection.node == node);
        part.extract_if(goes, |entry| offline(entry.uid), hasher);
        *uids -= (before - part.len()) as u64;
        before
    }

    /// Every connection of `node`.
    pub(crate) fn held_by(&self, node: NodeIndex) -> impl Iterator<Item = (&Uid, ConnectionNumber)> {
        let entries = self.parts.iter().flat_map(Part::iter);
        entries.flat_map(move |entry| {
            let own = entry.connections().iter().filter(move |connection| connection.node == node);
            own.map(|connection| (&entry.uid, connection.number))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_costs_48_bytes_and_one_connection_nothing_more() {
        assert_eq!(size_of::<Entry>(), 48);
        assert_eq!(size_of::<Connection>(), 24);
        assert_eq!(size_of::<Held>(), 24);
    }

    #[test]
    fn the_part_of_a_uid_is_fixed() {
        // Told to other nodes: a change here is a change of the protocol.
        assert_eq!(["a", "alice", "device-42", "Ä"].map(part_of), [77, 237, 19, 70]);
    }

    #[test]
    fn uids_spread_over_all_parts() {
        let mut counts = [0_u32; PARTS];
        (0..PARTS * 100).for_each(|n| counts[part_of(&format!("user-{n}"))] += 1);
        assert!(counts.iter().all(|count| (50..200).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_storm_leaves_no_memory_behind() {
        let mut directory = Directory::new();
        let uids: Vec<_> = (0..100_000).map(|n| Uid::new(&format!("u{n}")).unwrap()).collect();
        let node = NodeIndex(0);
        for (n, uid) in (1..).zip(&uids) {
            let connection = Connection::new(u64::from(n), node, ConnectionNumber(n), Millis(1000));
            let claim = Claim { uid, at: Millis(1000), connection, aged: false, replaces: None, limit: 1 };
            assert!(directory.claim(&claim, |_| panic!("nothing is displaced")));
        }
        assert_eq!(directory.uids(), 100_000);
        for (n, uid) in (1..).zip(&uids) {
            assert!(directory.release(uid.as_str(), |held| held.is(node, ConnectionNumber(n))));
        }
        assert_eq!(directory.uids(), 0);
        assert!(directory.parts.iter().all(|part| part.bytes() < 1_000));
    }

    #[test]
    fn however_many_there_are_a_uid_takes_60_bytes_beside_its_text() {
        let mut directory = Directory::new();
        for n in 1..=400_000 {
            let uid = Uid::new(&format!("u{n}")).unwrap();
            directory.put(uid, Millis(0), 1, vec![Connection::new(1, NodeIndex(0), ConnectionNumber(n), Millis(0))]);
            if n % 10_000 == 0 && n >= 100_000 {
                let bytes: usize = directory.parts.iter().map(Part::bytes).sum();
                // What isn't filled of the last chunk of each part doesn't grow.
                let bytes = bytes.saturating_sub(PARTS * part::CHUNK_BYTES);
                assert!(bytes <= 60 * n as usize, "{} bytes for each of {n}", bytes / n as usize);
            }
        }
    }
}
