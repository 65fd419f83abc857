//! Sockets to listen on, and the number of descriptors they may need.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};

use rustix::process::{Resource, Rlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// How many connections the kernel may hold for us before they are accepted. It lowers this to
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{hint}")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
    hint: &'static str,
}

/// Listens on all of `addresses`, or on none of them. Must be called inside the runtime.
///
/// `[::]` takes IPv4 connections too, unless `0.0.0.0` is listed with the same port.
pub fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
    addresses
        .iter()
        .map(|&address| {
            let ipv4_has_its_own = addresses.iter().any(|other| {
                other.ip().is_unspecified() && other.is_ipv4() && other.port() == address.port() && other.port() != 0
            });
            bind_one(address, ipv4_has_its_own).map_err(|source| {
                let hint = hint(&source);
                ListenError { address, source, hint }
            })
        })
        .collect()
}

/// Raises the soft limit of open files to the hard one, and returns what it then is; `None` is no limit.
pub fn raise_descriptor_limit() -> Option<u64> {
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
    match rustix::process::setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, limit = current, "the limit of open files stays as it is");
            current
        }
    }
}

fn bind_one(address: SocketAddr, ipv6_only: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // A restart must not wait for the connections of the process before it.
    socket.set_reuse_address(true)?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(ipv6_only)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process has it (`ss -ltnp` shows which), or it is listed twice",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        _ => "",
    }
}

/// An address that a client on this machine can use.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_what_to_do() {
        let listeners = bind(&[address("127.0.0.1:0")]).unwrap();
        let taken = listeners[0].local_addr().unwrap();
        let message = bind(&[taken]).unwrap_err().to_string();
        assert!(message.starts_with(&format!("cannot listen on {taken}: ")), "{message}");
        assert!(message.contains("ss -ltnp"), "{message}");
    }

    #[tokio::test]
    async fn the_unspecified_ipv6_address_takes_ipv4_too() {
        let listener = bind(&[address("[::]:0")]).unwrap().remove(0);
        let port = listener.local_addr().unwrap().port();
        let (client, accepted) = tokio::join!(tokio::net::TcpStream::connect(("127.0.0.1", port)), listener.accept());
        client.unwrap();
        accepted.unwrap();
    }

    #[tokio::test]
    async fn both_unspecified_addresses_can_be_listed_with_one_port() {
        let any_ipv4 = bind_one(address("0.0.0.0:0"), false).unwrap().local_addr().unwrap();
        let any_ipv6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, any_ipv4.port()));
        assert_eq!(bind(&[any_ipv4, any_ipv6]).unwrap().len(), 2);
    }

    #[test]
    fn the_descriptor_limit_is_raised_to_the_hard_one() {
        let limit = raise_descriptor_limit();
        assert_eq!(rustix::process::getrlimit(Resource::Nofile).current, limit);
    }
}
