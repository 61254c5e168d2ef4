//! The generated code of `proto/plex/v1`: messages, the `Gateway` client and server, the `Authenticator` client and server.
#![allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]

tonic::include_proto!("plex.v1");

/// The compiled descriptors, which the reflection service serves.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/plex.binpb"));
