//! The state of TLS, without a socket: records in, text and records out.

use std::sync::Arc;

use rustls::{
    Error, ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus},
};

/// A record's header, text and the most that sealing adds.
const RECORD_BYTES_MAX: usize = 5 + 16 * 1024 + 2 * 1024;

/// Room for what sealing adds to a record, and for an update of the keys before it; where it doesn't do, rustls says how
/// much does.
const SEAL_BYTES: usize = 256;

pub(super) struct Core {
    connection: UnbufferedServerConnection,
    /// The front of a record (in the handshake: of a message) that hasn't come whole.
    incoming: Vec<u8>,
    /// Text that nobody has read yet.
    text: Vec<u8>,
    /// Records that the socket hasn't taken yet.
    pub(super) outgoing: Vec<u8>,
    peer_ended: bool,
    said_end: bool,
    failed: bool,
}

impl Core {
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config)?,
            incoming: Vec::new(),
            text: Vec::new(),
            outgoing: Vec::new(),
            peer_ended: false,
            said_end: false,
            failed: false,
        })
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// The peer said its end, or the stream ended without a word. A frame's length tells whether something is missing.
    pub(super) fn has_peer_ended(&self) -> bool {
        self.peer_ended
    }

    pub(super) fn peer_ended(&mut self) {
        self.peer_ended = true;
    }

    /// Nothing can be read or written any more; the peer has been told why.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Nothing is read or written any more.
    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    pub(super) fn has_said_end(&self) -> bool {
        self.said_end
    }

    pub(super) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    #[cfg(test)]
    pub(super) fn kept_bytes(&self) -> usize {
        self.incoming.capacity() + self.text.capacity() + self.outgoing.capacity()
    }

    /// Hands over text that was kept.
    pub(super) fn take_text(&mut self, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(self.text.len());
        buffer[..count].copy_from_slice(&self.text[..count]);
        if count == self.text.len() {
            self.text = Vec::new();
        } else {
            self.text.drain(..count);
        }
        count
    }

    /// Opens the records that `read` completes, into `buffer`; text that doesn't fit is kept. What TLS itself answers is
    /// appended to `records`, also where it fails. How many bytes `buffer` got.
    pub(super) fn open(&mut self, read: &mut [u8], buffer: &mut [u8], records: &mut Vec<u8>) -> Result<usize, Error> {
        let mut text = std::mem::take(&mut self.text);
        let mut filled = 0;
        let mut keep = |part: &[u8]| {
            let taken = if text.is_empty() { part.len().min(buffer.len() - filled) } else { 0 };
            buffer[filled..filled + taken].copy_from_slice(&part[..taken]);
            filled += taken;
            text.extend_from_slice(&part[taken..]);
        };
        let result = if self.incoming.is_empty() {
            let (used, result) = self.advance(read, records, &mut keep, None);
            self.incoming = read[used..].to_vec();
            result
        } else {
            self.incoming.extend_from_slice(read);
            self.advance_kept(records, &mut keep, None)
        };
        self.text = text;
        if result.is_err() {
            self.incoming = Vec::new();
        }
        result?;
        if self.incoming.len() > RECORD_BYTES_MAX {
            self.fail();
            self.incoming = Vec::new();
            return Err(Error::General("a message of the handshake is too long".to_owned()));
        }
        Ok(filled)
    }

    /// Appends a record with `text`, which isn't empty.
    pub(super) fn seal(&mut self, text: &[u8], records: &mut Vec<u8>) -> Result<(), Error> {
        if self.said_end || self.failed {
            return Err(Error::General("the stream has ended".to_owned()));
        }
        self.write(Write::Text(text), records)
    }

    /// Appends the word that nothing more comes, once. After a failure the peer has been told another.
    pub(super) fn say_end(&mut self, records: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.said_end, true) && !self.failed && !self.is_handshaking() {
            // A stream that can't say it just ends.
            let _ = self.write(Write::End, records);
        }
    }

    fn write(&mut self, write: Write<'_>, records: &mut Vec<u8>) -> Result<(), Error> {
        let mut text = std::mem::take(&mut self.text);
        let result = self.advance_kept(records, &mut |part| text.extend_from_slice(part), Some(write));
        self.text = text;
        result
    }

    /// As [`Self::advance`], of what is kept. (The state may refer to it, so nothing else may be given in its place.)
    fn advance_kept(
        &mut self,
        records: &mut Vec<u8>,
        text: &mut dyn FnMut(&[u8]),
        write: Option<Write<'_>>,
    ) -> Result<(), Error> {
        let mut incoming = std::mem::take(&mut self.incoming);
        let (used, result) = self.advance(&mut incoming, records, text, write);
        if used == incoming.len() {
            incoming = Vec::new();
        } else if used > 0 {
            incoming.drain(..used);
            incoming.shrink_to_fit();
        }
        self.incoming = incoming;
        result
    }

    /// Goes as far as it can: opens the records at the front of `incoming`, hands on their `text`, appends what TLS itself
    /// answers to `records`, then `write`. How many bytes are done with.
    fn advance(
        &mut self,
        incoming: &mut [u8],
        records: &mut Vec<u8>,
        text: &mut dyn FnMut(&[u8]),
        write: Option<Write<'_>>,
    ) -> (usize, Result<(), Error>) {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.connection.process_tls_records(&mut incoming[used..]);
            let done = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                    match traffic.next_record() {
                        Some(Ok(record)) => {
                            discard += record.discard;
                            text(record.payload);
                        }
                        Some(Err(error)) => break Some(Err(error)),
                        None => break None,
                    }
                },
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, records).err().map(Err),
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_ended = true;
                    None
                }
                Ok(ConnectionState::WriteTraffic(mut writer)) => Some(match write {
                    Some(Write::Text(text)) => append(records, text.len(), |room| writer.encrypt(text, room)),
                    Some(Write::End) => append(records, 0, |room| writer.queue_close_notify(room)),
                    None => Ok(()),
                }),
                Ok(_) if write.is_some() => Some(Err(Error::HandshakeNotComplete)),
                Ok(_) => Some(Ok(())),
                Err(error) => Some(Err(error)),
            };
            used += discard;
            match done {
                None => {}
                Some(Ok(())) => return (used, Ok(())),
                Some(Err(error)) => {
                    self.failed = true;
                    self.last_words(&mut incoming[used..], records);
                    return (used, Err(error));
                }
            }
        }
    }

    /// What the peer is told of a failure. (Nothing more is opened: rustls fails a second time by a panic.)
    fn last_words(&mut self, incoming: &mut [u8], records: &mut Vec<u8>) {
        while self.connection.wants_write()
            && let Ok(ConnectionState::EncodeTlsData(mut data)) = self.connection.process_tls_records(incoming).state
            && encode(&mut data, records).is_ok()
        {}
    }
}

/// What is written once that can be.
#[derive(Clone, Copy)]
enum Write<'a> {
    Text(&'a [u8]),
    End,
}

fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, records: &mut Vec<u8>) -> Result<(), Error> {
    let start = records.len();
    loop {
        match data.encode(&mut records[start..]) {
            Ok(written) => {
                records.truncate(start + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                records.resize(start + required_size, 0);
            }
            Err(error) => return Err(Error::General(error.to_string())),
        }
    }
}

/// Appends what `seal` makes of `text_bytes`.
fn append(
    records: &mut Vec<u8>,
    text_bytes: usize,
    mut seal: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<(), Error> {
    let start = records.len();
    records.resize(start + text_bytes + SEAL_BYTES, 0);
    loop {
        match seal(&mut records[start..]) {
            Ok(written) => {
                records.truncate(start + written);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => {
                records.resize(start + required_size, 0);
            }
            Err(error) => return Err(Error::General(error.to_string())),
        }
    }
}
