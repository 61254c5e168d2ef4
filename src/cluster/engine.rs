//! What carries a node's words to the others: the presence log, and the bus for what nodes ask each other. One in this
//! process ([`LocalLog`](super::LocalLog)), one over NATS.

use futures_util::future::BoxFuture;

use crate::model::{ConnectionNumber, EndReason, Millis, Uid};

use super::{bus::Inbound, fold::Incarnation, hosts::Card, node::Node};

/// One for a node, which gives itself to each call.
pub(crate) trait Engine: Send + Sync {
    /// Says that the node holds a connection of `uid`, in place of its own connection `replaces`. Never fails, and never
    /// waits. `accepted` is on the clock of [`Engine::now`].
    fn claim(
        &self,
        node: &Node,
        uid: &Uid,
        number: ConnectionNumber,
        replaces: Option<ConnectionNumber>,
        accepted: Millis,
    );

    /// Says that a connection of the node has ended. As [`Engine::claim`].
    fn release(&self, node: &Node, uid: &Uid, number: ConnectionNumber, reason: EndReason);

    /// Says what the node can take.
    fn announce(&self, node: &Node, card: Card);

    /// The time now, on a clock that never goes back.
    fn now(&self) -> Millis;

    /// Puts a question into another node's queue. Dropped, and false, where it isn't taken: nothing was handed over.
    fn send(&self, to: Incarnation, question: Inbound) -> bool;

    /// Resolves once all that was written before this call, by whomever, is folded here; false: that can't be told.
    /// `None`: it is folded already.
    fn barrier(&self) -> Option<BoxFuture<'static, bool>>;

    /// Whether the others can be reached by [`Engine::send`], as far as is known.
    fn is_bus_up(&self) -> bool;

    /// Ends the node's life in the log: what it still holds goes offline as `draining`. Resolves once that is folded, or
    /// can't be.
    fn leave(&self, node: &Node) -> BoxFuture<'static, ()>;
}

/// How a node stands to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has yet to get in step with the log, for the first time or after its state was lost: only its own devices are
    /// known.
    Joining,
    /// What is known is what is.
    InStep,
    /// Nothing has been read from the log for a while: what is known is what was.
    Still,
}
