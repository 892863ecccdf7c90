// Checks what the audit log proves with the Go project's own packages, and with nothing of ours.
//
// Usage: tlog KEYS PROOF OLD-CHECKPOINT CONSISTENCY
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Entry is what the extra data of a proof hold.
type Entry struct {
	Entry struct {
		TenantID     string `json:"tenantId"`
		Sequence     int64  `json:"sequence"`
		PreviousHash string `json:"previousHash"`
		Record       string `json:"record"`
		Salt         string `json:"salt"`
	} `json:"entry"`
}

func (e Entry) hash() []byte {
	format, last := "evergreen audit entry v1", e.Entry.Record
	if e.Entry.Salt != "" {
		digest := sha256.Sum256([]byte("evergreen audit record v1\n" + e.Entry.Salt + "\n" + last))
		format, last = "evergreen audit entry v2", hex.EncodeToString(digest[:])
	}
	sum := sha256.Sum256([]byte(fmt.Sprintf("%s\n%s\n%d\n%s\n%s",
		format, e.Entry.TenantID, e.Entry.Sequence, e.Entry.PreviousHash, last)))
	return sum[:]
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Println("refused:", err)
		os.Exit(1)
	}
	return value
}

func checkpoint(text string, keys note.Verifiers) tlog.Tree {
	opened := must(note.Open([]byte(text), keys))
	lines := strings.Split(opened.Text, "\n")
	size := must(strconv.ParseInt(lines[1], 10, 64))
	return tlog.Tree{N: size, Hash: must(tlog.ParseHash(lines[2]))}
}

func main() {
	var verifiers []note.Verifier
	for _, line := range strings.Fields(string(must(os.ReadFile(os.Args[1])))) {
		verifiers = append(verifiers, must(note.NewVerifier(line)))
	}
	keys := note.VerifierList(verifiers...)

	head, below, _ := strings.Cut(string(must(os.ReadFile(os.Args[2]))), "\n\n")
	lines := strings.Split(head, "\n")
	if lines[0] != "c2sp.org/tlog-proof@v1" {
		must(0, fmt.Errorf("another format: %s", lines[0]))
	}
	var entry Entry
	extra := must(base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "extra ")))
	must(0, json.NewDecoder(bytes.NewReader(extra)).Decode(&entry))
	index := must(strconv.ParseInt(strings.TrimPrefix(lines[2], "index "), 10, 64))
	var proof tlog.RecordProof
	for _, line := range lines[3:] {
		proof = append(proof, must(tlog.ParseHash(line)))
	}
	tree := checkpoint(below, keys)
	must(0, tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(entry.hash())))
	fmt.Printf("entry is leaf %d of %d\n", index, tree.N)

	old := checkpoint(string(must(os.ReadFile(os.Args[3]))), keys)
	var answer struct {
		Hashes     []string `json:"hashes"`
		Checkpoint string   `json:"checkpoint"`
	}
	must(0, json.Unmarshal(must(os.ReadFile(os.Args[4])), &answer))
	newer := checkpoint(answer.Checkpoint, keys)
	var consistency tlog.TreeProof
	for _, text := range answer.Hashes {
		consistency = append(consistency, must(tlog.ParseHash(text)))
	}
	must(0, tlog.CheckTree(consistency, newer.N, newer.Hash, old.N, old.Hash))
	fmt.Printf("nothing was removed between %d and %d\n", old.N, newer.N)
}
