// Command faults stands between clients and the API server and does to them what networks and overloaded API servers do.
//
//	faults --listen ADDRESS --target URL --certificate FILE --key FILE
//
// One JSON order a line on stdin, one JSON answer (what was seen since the last one) a line on stdout; it ends with stdin. An order holds until
// the next one: everything that it does not name goes through.
//
// The certificate is the API server's own, so that clients trust both alike. Clients' credentials are passed on.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// order is what is to be done from now on.
type order struct {
	// Look leaves all as it is and only asks what was seen since the last order.
	Look bool `json:"look"`
	// Cut ends all connections that watch now.
	Cut bool `json:"cut"`
	// Down ends every connection without an answer.
	Down bool `json:"down"`
	// Codes are answered instead of what the API server would say: 409, 429, 500.
	Codes []int `json:"codes"`
	// SlowMilliseconds is how long requests wait before they go on.
	SlowMilliseconds int `json:"slowMilliseconds"`
	// Share of the requests that Codes and SlowMilliseconds are for, 0 to 1.
	Share float64 `json:"share"`
	// Seed of the choice.
	Seed uint64 `json:"seed"`
	// Expire answers watches as an API server does that does not have that far back any more: 410, so that clients list again.
	Expire bool `json:"expire"`
	// Empty are resources (natmappings) of which every list is empty and no watch tells anything, as after a restore from an early backup.
	Empty []string `json:"empty"`
}

// seen is what went by since the order before.
type seen struct {
	Requests int `json:"requests"`
	Faults   int `json:"faults"`
	Cut      int `json:"cut"`
	// Owed are the watches that ended by no will of the client and that it has not opened again, as often as it has to.
	Owed []string `json:"owed"`
}

// open is how long a watch has to live until it counts as open again: one that the API server refuses in the stream (410) ends at once.
const open = 200 * time.Millisecond

type proxy struct {
	inner *httputil.ReverseProxy

	lock    sync.Mutex
	now     order
	dice    *rand.Rand
	seen    seen
	watches map[*watch]bool
	// owed counts by client's host and what is watched.
	owed map[string]int
}

func main() {
	listen := flag.String("listen", "", "address to listen on")
	target := flag.String("target", "", "URL of the API server")
	certificate := flag.String("certificate", "", "file with the certificate")
	key := flag.String("key", "", "file with its key")
	flag.Parse()
	to, err := url.Parse(*target)
	if err != nil {
		log.Fatal(err)
	}
	p := &proxy{watches: map[*watch]bool{}, owed: map[string]int{}, dice: rand.New(rand.NewPCG(0, 0))}
	p.inner = &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		FlushInterval: -1,
		// The API server's certificate is its own and on loopback: whom this talks to is known.
		Transport:      &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true},
		ModifyResponse: p.change,
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:       log.New(io.Discard, "", 0),
	}
	server := &http.Server{Addr: *listen, Handler: p, ErrorLog: log.New(io.Discard, "", 0)}
	go p.obey()
	log.Fatal(server.ListenAndServeTLS(*certificate, *key))
}

// obey takes orders until there are no more.
func (p *proxy) obey() {
	lines := bufio.NewScanner(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var next order
		if err := json.Unmarshal(lines.Bytes(), &next); err != nil {
			log.Fatal(err)
		}
		if err := answers.Encode(p.take(next)); err != nil {
			log.Fatal(err)
		}
	}
	os.Exit(0)
}

func (p *proxy) take(next order) seen {
	p.lock.Lock()
	defer p.lock.Unlock()
	was := p.seen
	was.Owed = []string{}
	for key, count := range p.owed {
		if count > 0 {
			was.Owed = append(was.Owed, fmt.Sprintf("%d of %s", count, key))
		}
	}
	if next.Look {
		return was
	}
	p.now = next
	p.dice = rand.New(rand.NewPCG(next.Seed, 0))
	p.seen = seen{}
	if next.Cut || next.Down {
		was.Cut = len(p.watches)
		for w := range p.watches {
			w.cancel()
			p.end(w)
		}
	}
	return was
}

func watching(r *http.Request) bool {
	watch := r.URL.Query().Get("watch")
	return watch == "true" || watch == "1"
}

// subject is who watches what: agents are told apart by their hosts, replicas of the controller only by number.
func subject(r *http.Request) string {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	query := r.URL.Query()
	return strings.TrimSpace(strings.Join([]string{host, r.URL.Path, query.Get("fieldSelector"), query.Get("labelSelector")}, " "))
}

// watch is one that is under way.
type watch struct {
	key    string
	cancel context.CancelFunc
	// open: the API server answered some time ago and still does.
	open bool
}

// ofWatch finds the watch in the context of its request.
type ofWatch struct{}

// answered is called when the API server has agreed to a watch.
func (p *proxy) answered(w *watch) {
	time.AfterFunc(open, func() {
		p.lock.Lock()
		defer p.lock.Unlock()
		if p.watches[w] && !w.open {
			w.open = true
			p.owed[w.key] = max(0, p.owed[w.key]-1)
		}
	})
}

// ended is called when a watch is over. One that never was open leaves owed what was owed before.
func (p *proxy) ended(w *watch, client context.Context) {
	p.lock.Lock()
	defer p.lock.Unlock()
	if client.Err() != nil {
		delete(p.watches, w)
	}
	p.end(w)
}

// end forgets a watch, once, of which the client was not asked.
func (p *proxy) end(w *watch) {
	if p.watches[w] && w.open {
		p.owed[w.key]++
	}
	delete(p.watches, w)
}

// resource is the last part of a path that is a list's or a watch's.
func resource(r *http.Request) string {
	return r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.lock.Lock()
	now := p.now
	p.seen.Requests++
	hit := now.Share > 0 && p.dice.Float64() < now.Share
	code := 0
	if hit && len(now.Codes) > 0 {
		code = now.Codes[p.dice.IntN(len(now.Codes))]
	}
	if now.Down || hit || now.Expire && watching(r) {
		p.seen.Faults++
	}
	client := r.Context()
	inner, cancel := context.WithCancel(client)
	defer cancel()
	if watching(r) {
		w := &watch{key: subject(r), cancel: cancel}
		p.watches[w] = true
		defer p.ended(w, client)
		inner = context.WithValue(inner, ofWatch{}, w)
	}
	r = r.WithContext(inner)
	p.lock.Unlock()

	switch {
	case now.Down:
		panic(http.ErrAbortHandler)
	case code != 0:
		refuse(w, code)
		return
	case now.Expire && watching(r):
		// An API server tells that in the stream.
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"type":"ERROR","object":%s}`+"\n", told(410, "Expired", "too old resource version"))
		return
	case hit && now.SlowMilliseconds > 0:
		time.Sleep(time.Duration(now.SlowMilliseconds) * time.Millisecond)
	}
	p.inner.ServeHTTP(w, r)
}

func refuse(w http.ResponseWriter, code int) {
	reason := map[int]string{409: "Conflict", 429: "TooManyRequests", 500: "InternalError"}[code]
	w.Header().Set("Content-Type", "application/json")
	if code == 429 {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(code)
	fmt.Fprint(w, told(code, reason, "made up by the test"))
}

func told(code int, reason, message string) string {
	return fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":%q,"reason":%q,"code":%d}`, message, reason, code)
}

// change takes the items out of lists that are to be empty, and notes watches that begin.
func (p *proxy) change(r *http.Response) error {
	p.lock.Lock()
	empty := p.now.Empty
	p.lock.Unlock()
	if r.Request.Method != http.MethodGet || r.StatusCode != http.StatusOK {
		return nil
	}
	if w, is := r.Request.Context().Value(ofWatch{}).(*watch); is {
		p.answered(w)
	}
	for _, one := range empty {
		if resource(r.Request) != one {
			continue
		}
		if watching(r.Request) {
			// Nothing is told: the stream stays open and silent.
			r.Body.Close()
			r.Body = silence{r.Request.Context()}
			return nil
		}
		var list map[string]json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&list); err != nil {
			return err
		}
		r.Body.Close()
		list["items"] = json.RawMessage("[]")
		// The version is a true one, so that watches can go on from there.
		var meta struct {
			ResourceVersion string `json:"resourceVersion"`
		}
		if err := json.Unmarshal(list["metadata"], &meta); err != nil {
			return err
		}
		list["metadata"], _ = json.Marshal(meta)
		text, err := json.Marshal(list)
		if err != nil {
			return err
		}
		r.Body = io.NopCloser(bytes.NewReader(text))
		r.ContentLength = int64(len(text))
		r.Header.Set("Content-Length", fmt.Sprint(len(text)))
	}
	return nil
}

// silence is a stream that says nothing until its context ends.
type silence struct{ context context.Context }

func (s silence) Read([]byte) (int, error) {
	<-s.context.Done()
	return 0, io.ErrUnexpectedEOF
}

func (s silence) Close() error { return nil }
