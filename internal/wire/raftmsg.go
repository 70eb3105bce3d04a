package wire

import (
	"time"

	"github.com/hashicorp/raft"
)

// Each message of raft has an Append function, which appends its encoding to b, and a Decode function, its inverse. What
// is decoded refers to the input, so the input must not change afterwards. Decoding allocates in proportion to the input.

// logBase is the size of an encoded log entry without Data and Extensions.
const logBase = 8 + 8 + 1 + 8 + 4 + 4

// LogSize is the size in bytes of l's encoding.
func LogSize(l *raft.Log) int { return logBase + len(l.Data) + len(l.Extensions) }

func putHeader(b []byte, h raft.RPCHeader) []byte {
	b = le.AppendUint32(b, uint32(h.ProtocolVersion))
	b = putBytes(b, h.ID)
	return putBytes(b, h.Addr)
}

func (d *decoder) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersion(d.u32()), ID: d.bytes(), Addr: d.bytes()}
}

// AppendAppendEntries encodes a request to append.
func AppendAppendEntries(b []byte, m *raft.AppendEntriesRequest) []byte {
	b = putHeader(b, m.RPCHeader)
	b = le.AppendUint64(b, m.Term)
	b = putBytes(b, m.Leader)
	b = le.AppendUint64(b, m.PrevLogEntry)
	b = le.AppendUint64(b, m.PrevLogTerm)
	b = le.AppendUint64(b, m.LeaderCommitIndex)
	return AppendLogs(b, m.Entries)
}

// AppendLogs encodes log entries.
func AppendLogs(b []byte, logs []*raft.Log) []byte {
	b = le.AppendUint32(b, uint32(len(logs)))
	for _, l := range logs {
		b = le.AppendUint64(b, l.Index)
		b = le.AppendUint64(b, l.Term)
		b = append(b, byte(l.Type))
		b = le.AppendUint64(b, uint64(unixNano(l.AppendedAt)))
		b = putBytes(b, l.Data)
		b = putBytes(b, l.Extensions)
	}
	return b
}

// DecodeAppendEntries is the inverse of AppendAppendEntries.
func DecodeAppendEntries(b []byte) (*raft.AppendEntriesRequest, error) {
	d := decoder{b: b}
	m := &raft.AppendEntriesRequest{
		RPCHeader:         d.header(),
		Term:              d.u64(),
		Leader:            d.bytes(),
		PrevLogEntry:      d.u64(),
		PrevLogTerm:       d.u64(),
		LeaderCommitIndex: d.u64(),
		Entries:           d.logs(),
	}
	return m, d.end()
}

// DecodeLogs is the inverse of AppendLogs.
func DecodeLogs(b []byte) ([]*raft.Log, error) {
	d := decoder{b: b}
	logs := d.logs()
	return logs, d.end()
}

func (d *decoder) logs() []*raft.Log {
	n := int64(d.u32())
	if n > int64(len(d.b)/logBase) {
		d.fail("%d entries declared in %d bytes", n, len(d.b))
	}
	if d.err != nil || n == 0 {
		return nil
	}
	logs := make([]raft.Log, n)
	list := make([]*raft.Log, n)
	for i := range logs {
		l := &logs[i]
		l.Index = d.u64()
		l.Term = d.u64()
		l.Type = raft.LogType(d.u8())
		l.AppendedAt = fromUnixNano(int64(d.u64()))
		l.Data = d.bytes()
		l.Extensions = d.bytes()
		list[i] = l
	}
	return list
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromUnixNano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// AppendAppendEntriesResponse encodes the answer to a request to append.
func AppendAppendEntriesResponse(b []byte, m *raft.AppendEntriesResponse) []byte {
	b = putHeader(b, m.RPCHeader)
	b = le.AppendUint64(b, m.Term)
	b = le.AppendUint64(b, m.LastLog)
	b = putBool(b, m.Success)
	return putBool(b, m.NoRetryBackoff)
}

// DecodeAppendEntriesResponse is the inverse of AppendAppendEntriesResponse.
func DecodeAppendEntriesResponse(b []byte) (*raft.AppendEntriesResponse, error) {
	d := decoder{b: b}
	m := &raft.AppendEntriesResponse{
		RPCHeader:      d.header(),
		Term:           d.u64(),
		LastLog:        d.u64(),
		Success:        d.bool(),
		NoRetryBackoff: d.bool(),
	}
	return m, d.end()
}

// AppendVote encodes a request for a vote.
func AppendVote(b []byte, m *raft.RequestVoteRequest) []byte {
	b = putHeader(b, m.RPCHeader)
	b = le.AppendUint64(b, m.Term)
	b = putBytes(b, m.Candidate)
	b = le.AppendUint64(b, m.LastLogIndex)
	b = le.AppendUint64(b, m.LastLogTerm)
	return putBool(b, m.LeadershipTransfer)
}

// DecodeVote is the inverse of AppendVote.
func DecodeVote(b []byte) (*raft.RequestVoteRequest, error) {
	d := decoder{b: b}
	m := &raft.RequestVoteRequest{
		RPCHeader:          d.header(),
		Term:               d.u64(),
		Candidate:          d.bytes(),
		LastLogIndex:       d.u64(),
		LastLogTerm:        d.u64(),
		LeadershipTransfer: d.bool(),
	}
	return m, d.end()
}

// AppendVoteResponse encodes the answer to a request for a vote.
func AppendVoteResponse(b []byte, m *raft.RequestVoteResponse) []byte {
	b = putHeader(b, m.RPCHeader)
	b = le.AppendUint64(b, m.Term)
	b = putBytes(b, m.Peers)
	return putBool(b, m.Granted)
}

// DecodeVoteResponse is the inverse of AppendVoteResponse.
func DecodeVoteResponse(b []byte) (*raft.RequestVoteResponse, error) {
	d := decoder{b: b}
	m := &raft.RequestVoteResponse{RPCHeader: d.header(), Term: d.u64(), Peers: d.bytes(), Granted: d.bool()}
	return m, d.end()
}

// AppendPreVote encodes the question whether a request for a vote would be granted.
func AppendPreVote(b []byte, m *raft.RequestPreVoteRequest) []byte {
	b = putHeader(b, m.RPCHeader)
	b = le.AppendUint64(b, m.Term)
	b = le.AppendUint64(b, m.LastLogIndex)
	return le.AppendUint64(b, m.LastLogTerm)
}

// DecodePreVote is the inverse of AppendPreVote.
func DecodePreVote(b []byte) (*raft.RequestPreVoteRequest, error) {
	d := decoder{b: b}
	m := &raft.RequestPreVoteRequest{RPCHeader: d.header(), Term: d.u64(), LastLogIndex: d.u64(), LastLogTerm: d.u64()}
	return m, d.end()
}

// AppendPreVoteResponse encodes the answer to a pre-vote.
func AppendPreVoteResponse(b []byte, m *raft.RequestPreVoteResponse) []byte {
	b = putHeader(b, m.RPCHeader)
	b = le.AppendUint64(b, m.Term)
	return putBool(b, m.Granted)
}

// DecodePreVoteResponse is the inverse of AppendPreVoteResponse.
func DecodePreVoteResponse(b []byte) (*raft.RequestPreVoteResponse, error) {
	d := decoder{b: b}
	m := &raft.RequestPreVoteResponse{RPCHeader: d.header(), Term: d.u64(), Granted: d.bool()}
	return m, d.end()
}

// AppendInstallSnapshot encodes what goes before the bytes of a snapshot.
func AppendInstallSnapshot(b []byte, m *raft.InstallSnapshotRequest) []byte {
	b = putHeader(b, m.RPCHeader)
	b = le.AppendUint32(b, uint32(m.SnapshotVersion))
	b = le.AppendUint64(b, m.Term)
	b = putBytes(b, m.Leader)
	b = le.AppendUint64(b, m.LastLogIndex)
	b = le.AppendUint64(b, m.LastLogTerm)
	b = putBytes(b, m.Peers)
	b = putBytes(b, m.Configuration)
	b = le.AppendUint64(b, m.ConfigurationIndex)
	return le.AppendUint64(b, uint64(m.Size))
}

// DecodeInstallSnapshot is the inverse of AppendInstallSnapshot.
func DecodeInstallSnapshot(b []byte) (*raft.InstallSnapshotRequest, error) {
	d := decoder{b: b}
	m := &raft.InstallSnapshotRequest{
		RPCHeader:          d.header(),
		SnapshotVersion:    raft.SnapshotVersion(d.u32()),
		Term:               d.u64(),
		Leader:             d.bytes(),
		LastLogIndex:       d.u64(),
		LastLogTerm:        d.u64(),
		Peers:              d.bytes(),
		Configuration:      d.bytes(),
		ConfigurationIndex: d.u64(),
		Size:               int64(d.u64()),
	}
	if m.Size < 0 {
		d.fail("snapshot of %d bytes", m.Size)
	}
	return m, d.end()
}

// AppendInstallSnapshotResponse encodes the answer to a snapshot.
func AppendInstallSnapshotResponse(b []byte, m *raft.InstallSnapshotResponse) []byte {
	b = putHeader(b, m.RPCHeader)
	b = le.AppendUint64(b, m.Term)
	return putBool(b, m.Success)
}

// DecodeInstallSnapshotResponse is the inverse of AppendInstallSnapshotResponse.
func DecodeInstallSnapshotResponse(b []byte) (*raft.InstallSnapshotResponse, error) {
	d := decoder{b: b}
	m := &raft.InstallSnapshotResponse{RPCHeader: d.header(), Term: d.u64(), Success: d.bool()}
	return m, d.end()
}

// AppendTimeoutNow encodes the request to start an election at once.
func AppendTimeoutNow(b []byte, m *raft.TimeoutNowRequest) []byte { return putHeader(b, m.RPCHeader) }

// DecodeTimeoutNow is the inverse of AppendTimeoutNow.
func DecodeTimeoutNow(b []byte) (*raft.TimeoutNowRequest, error) {
	d := decoder{b: b}
	m := &raft.TimeoutNowRequest{RPCHeader: d.header()}
	return m, d.end()
}

// AppendTimeoutNowResponse encodes the answer to a TimeoutNowRequest.
func AppendTimeoutNowResponse(b []byte, m *raft.TimeoutNowResponse) []byte {
	return putHeader(b, m.RPCHeader)
}

// DecodeTimeoutNowResponse is the inverse of AppendTimeoutNowResponse.
func DecodeTimeoutNowResponse(b []byte) (*raft.TimeoutNowResponse, error) {
	d := decoder{b: b}
	m := &raft.TimeoutNowResponse{RPCHeader: d.header()}
	return m, d.end()
}
