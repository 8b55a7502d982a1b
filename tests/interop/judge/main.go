// The judge of published trees and receipts: Go's own transparency log code, which knows nothing of ledgerq.
//
//	judge tree DIR VKEY             every leaf is proven to be in the signed tree, and every older tree its beginning
//	judge receipt FILE VKEY         every proof of the receipt
//	judge older DIR VKEY NOTE       the signed tree goes on from the one of an older checkpoint
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func fail(format string, values ...any) {
	fmt.Printf("refused: "+format+"\n", values...)
	os.Exit(1)
}

func check(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func open(text []byte, vkey string) tlog.Tree {
	verifier, err := note.NewVerifier(vkey)
	check(err)
	opened, err := note.Open(text, note.VerifierList(verifier))
	check(err)
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		fail("the checkpoint is another one")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	hash, err := tlog.ParseHash(lines[2])
	check(err)
	return tlog.Tree{N: size, Hash: hash}
}

// folder reads tiles as c2sp.org/tlog-tiles lays them out: without the height in their paths.
type folder string

func (f folder) Height() int { return 8 }

func (f folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		data, err := os.ReadFile(filepath.Join(string(f), path))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

func (f folder) SaveTiles([]tlog.Tile, [][]byte) {}

func entries(f folder, size int64) [][]byte {
	var found [][]byte
	for n := int64(0); n*256 < size; n++ {
		path := fmt.Sprintf("tile/entries/%03d", n)
		if width := size - n*256; width < 256 {
			path += fmt.Sprintf(".p/%d", width)
		}
		data, err := os.ReadFile(filepath.Join(string(f), path))
		check(err)
		for len(data) > 0 {
			if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
				fail("%s is damaged", path)
			}
			length := int(binary.BigEndian.Uint16(data))
			found = append(found, data[2:2+length])
			data = data[2+length:]
		}
	}
	if int64(len(found)) != size {
		fail("%d entries, and the tree has %d", len(found), size)
	}
	return found
}

func readTree(dir, vkey string) (tlog.Tree, tlog.HashReader) {
	text, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	check(err)
	tree := open(text, vkey)
	return tree, tlog.TileHashReader(tree, folder(dir))
}

func judgeTree(dir, vkey string) {
	tree, hashes := readTree(dir, vkey)
	root, err := tlog.TreeHash(tree.N, hashes)
	check(err)
	if root != tree.Hash {
		fail("the tiles make another root")
	}
	for n, entry := range entries(folder(dir), tree.N) {
		proof, err := tlog.ProveRecord(tree.N, int64(n), hashes)
		check(err)
		check(tlog.CheckRecord(proof, tree.N, tree.Hash, int64(n), tlog.RecordHash(entry)))
		old, err := tlog.TreeHash(int64(n)+1, hashes)
		check(err)
		grown, err := tlog.ProveTree(tree.N, int64(n)+1, hashes)
		check(err)
		check(tlog.CheckTree(grown, tree.N, tree.Hash, int64(n)+1, old))
	}
	fmt.Printf("good: %d leaves\n", tree.N)
}

func judgeOlder(dir, vkey, file string) {
	tree, hashes := readTree(dir, vkey)
	text, err := os.ReadFile(file)
	check(err)
	old := open(text, vkey)
	if old.N > tree.N {
		fail("the tree has shrunk")
	}
	proof, err := tlog.ProveTree(tree.N, old.N, hashes)
	check(err)
	check(tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash))
	fmt.Printf("good: %d goes on from %d\n", tree.N, old.N)
}

func parseHashes(lines []string) []tlog.Hash {
	var found []tlog.Hash
	for _, line := range lines {
		hash, err := tlog.ParseHash(line)
		check(err)
		found = append(found, hash)
	}
	return found
}

func judgeReceipt(file, vkey string) {
	text, err := os.ReadFile(file)
	check(err)
	parts := strings.Split(string(text), "c2sp.org/tlog-proof@v1\n")
	for _, part := range parts[1:] {
		head, checkpoint, _ := strings.Cut(part, "\n\n")
		tree := open([]byte(checkpoint), vkey)
		lines := strings.Split(head, "\n")
		extra, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[0], "extra "))
		check(err)
		index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
		check(err)
		check(tlog.CheckRecord(parseHashes(lines[2:]), tree.N, tree.Hash, index, tlog.RecordHash(extra[:81])))

		base, next := binary.BigEndian.Uint64(extra[1:]), binary.BigEndian.Uint64(extra[9:])
		number, count := int64(binary.BigEndian.Uint32(extra[81:])), int(extra[85])
		var inner tlog.RecordProof
		for n := 0; n < count; n++ {
			inner = append(inner, tlog.Hash(extra[86+32*n:118+32*n]))
		}
		hidden := extra[86+32*count:]
		commitment := sha256.Sum256(bytes.Join([][]byte{[]byte("ledgerq.dev/event/v1\n"), hidden}, nil))
		leaf := tlog.RecordHash(commitment[:])
		check(tlog.CheckRecord(inner, int64(next-base), tlog.Hash(extra[49:81]), number, leaf))
	}
	fmt.Printf("good: %d events\n", len(parts)-1)
}

func main() {
	switch os.Args[1] {
	case "tree":
		judgeTree(os.Args[2], os.Args[3])
	case "older":
		judgeOlder(os.Args[2], os.Args[3], os.Args[4])
	case "receipt":
		judgeReceipt(os.Args[2], os.Args[3])
	}
}
