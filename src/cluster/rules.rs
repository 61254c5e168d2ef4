//! The rules by which many nodes come to one truth. All hold, always; the simulator leaves one out at a time, to show what
//! it is for.

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Rule {
    /// A join ends an earlier life of its name, and isn't taken where it is the earlier one.
    JoinEnds,
    /// Only live incarnations count.
    OnlyLive,
    /// A batch counts once, as the next of its incarnation.
    OnceInOrder,
    /// An aged claim takes nothing from a newer connection.
    Aged,
    /// A release removes exactly its connection.
    ExactRelease,
    /// A displaced connection is closed by its node.
    Displaced,
    /// A node is dead only if it has written nothing since it was found so.
    DeadIfSilent,
    /// Silence is counted in one's own heartbeats that were read back.
    OwnHeartbeats,
    /// A node that reads its own end joins anew and claims all it holds.
    Again,
    /// Nobody voids the log as long as anybody writes.
    ResetIfSilent,
    /// A snapshot's part is exact at its own place.
    ExactParts,
    /// The last folded message must come again, and be the same.
    Identity,
    /// A log is made anew above every place before.
    Above,
}

/// Those that hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules(u16);

impl Rules {
    pub(crate) const ALL: Self = Self(u16::MAX);

    pub(crate) fn hold(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u8) != 0
    }

    #[cfg(test)]
    pub(crate) fn without(rule: Rule) -> Self {
        Self(!(1 << rule as u8))
    }
}
